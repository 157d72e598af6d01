//! The last touches to the generated CRDs, which the derives cannot give.
//!
//! 1. `nullable` goes: a field is given or it is left out, so that `has()` in a rule means what it says.
//! 2. Formats that Kubernetes does not know go.
//! 3. Types of Kubernetes itself (the pod template, conditions) come without bounds and with their whole
//!    documentation: they get bounds, so that no list, text or map is without one, and lose the texts.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// Formats that Kubernetes knows and that a schema of ours may have.
const FORMATS: [&str; 5] = ["int32", "int64", "float", "double", "date-time"];

/// Bounds for types that bring none.
const MAX_ITEMS: i64 = 64;
const MAX_PROPERTIES: i64 = 64;
/// As long as the message of a condition may be.
const MAX_LENGTH: i64 = 32_768;

/// Finishes a generated CRD.
pub(crate) fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|s| s.open_api_v3_schema.as_mut())
        {
            schema.title = None;
            walk(schema, "", false);
        }
    }
    crd
}

/// What a quantity, such as the `500m` of a CPU, looks like.
const QUANTITY: &str = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";

/// Fields whose types are of Kubernetes itself.
const FOREIGN: [&str; 5] = [
    "affinity",
    "conditions",
    "imagePullSecrets",
    "resources",
    "tolerations",
];

fn walk(schema: &mut JSONSchemaProps, name: &str, foreign: bool) {
    let inside_foreign = foreign;
    let foreign = foreign || FOREIGN.contains(&name);
    schema.nullable = None;
    if schema.format.as_deref().is_some_and(|f| !FORMATS.contains(&f)) {
        schema.format = None;
    }
    if inside_foreign {
        schema.description = None;
    }
    if schema.x_kubernetes_int_or_string == Some(true) {
        schema.pattern = schema.pattern.take().or_else(|| Some(QUANTITY.to_owned()));
        schema.max_length = schema.max_length.or(Some(32));
    }
    if foreign {
        match schema.type_.as_deref() {
            Some("array") => schema.max_items = schema.max_items.or(Some(MAX_ITEMS)),
            Some("string") if schema.enum_.is_none() && schema.format.is_none() => {
                schema.max_length = schema.max_length.or(Some(MAX_LENGTH));
            }
            Some("object") if schema.additional_properties.is_some() => {
                schema.max_properties = schema.max_properties.or(Some(MAX_PROPERTIES));
            }
            _ => {}
        }
    }
    for (name, property) in schema.properties.iter_mut().flatten() {
        walk(property, name, foreign);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => walk(items, "", foreign),
        Some(JSONSchemaPropsOrArray::Schemas(all)) => all.iter_mut().for_each(|s| walk(s, "", foreign)),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        walk(values, "", foreign);
    }
}
