//! The meter models that the program brings along, so that a folder of manifests runs without copying
//! them. A MeterProfile of the same name in the folder goes before.

/// Each model's manifest, by the name of its MeterProfile.
pub const MODELS: [(&str, &str); 15] = [
    model!("abb-b23-b24"),
    model!("accuenergy-acuvim-ii"),
    model!("carlogavazzi-em24-e1"),
    model!("carlogavazzi-em24-rs485"),
    model!("carlogavazzi-em340"),
    model!("eastron-sdm120"),
    model!("eastron-sdm630"),
    model!("janitza-umg-classic"),
    model!("kron-konect"),
    model!("schneider-iem3155"),
    model!("schneider-pm5100"),
    model!("siemens-pac2200"),
    model!("siemens-pac3200"),
    model!("sunspec-203"),
    model!("sunspec-213"),
];

macro_rules! model {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../manifests/profiles/", $name, ".yaml")),
        )
    };
}
use model;

/// The manifest of a model, where there is one of that name.
#[must_use]
pub fn manifest(name: &str) -> Option<&'static str> {
    MODELS
        .iter()
        .find(|(model, _)| *model == name)
        .map(|(_, manifest)| *manifest)
}
