//! YAML to JSON values that remember their lines.
//!
//! 1. A file is cut into documents at its `---` lines, so that one document with a mistake in its syntax
//!    leaves the others alone.
//! 2. Each becomes a [`Node`]: a tree like JSON's with the line of every value.
//! 3. A place such as `spec.endpoints[0].address` is looked up in the tree, to name its line.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

/// A document's text, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// The line its text begins in, from 1.
    pub line: usize,
    /// The text.
    pub text: &'a str,
}

/// Cuts a file into its documents; those that hold nothing are left out.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker = ["---", "..."].into_iter().find(|marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        if marker.is_some() {
            documents.push(Document {
                line: start_line,
                text: &text[start..offset],
            });
            // What follows the marker in its line belongs to the document: a comment, or all of it.
            (start, start_line) = (offset + 3, i + 1);
        }
        offset += line.len();
    }
    documents.push(Document {
        line: start_line,
        text: &text[start..],
    });
    documents.retain(|document| {
        document.text.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        })
    });
    documents
}

/// A value, and the line it is in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// The line in the file, from 1; of a field, the line of its name.
    pub line: usize,
    content: Content,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Why a document is not YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotYaml {
    /// The line of the mistake.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl Node {
    /// Reads one document.
    pub fn read(document: Document<'_>) -> Result<Self, NotYaml> {
        let options = serde_saphyr::options! { with_snippet: false };
        match serde_saphyr::from_str_with_options::<Spanned<Content>>(document.text, options) {
            Ok(spanned) => {
                let mut node = Self::from(spanned);
                node.shift(document.line - 1);
                Ok(node)
            }
            Err(error) => {
                let line = error
                    .location()
                    .map_or(1, |l| usize::try_from(l.line()).unwrap_or(1));
                Err(NotYaml {
                    line: document.line - 1 + line.max(1),
                    message: error.to_string().lines().collect::<Vec<_>>().join(" "),
                })
            }
        }
    }

    fn shift(&mut self, lines: usize) {
        self.line += lines;
        match &mut self.content {
            Content::Scalar(_) => {}
            Content::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Content::Map(fields) => fields.iter_mut().for_each(|(_, field)| field.shift(lines)),
        }
    }

    /// The JSON value.
    pub fn value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Content::Map(fields) => fields
                .iter()
                .map(|(name, field)| (name.clone(), field.value()))
                .collect(),
        }
    }

    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&Self> {
        match &self.content {
            Content::Map(fields) => fields.iter().find(|(n, _)| n == name).map(|(_, field)| field),
            _ => None,
        }
    }

    /// The items, where it is a list.
    pub fn items(&self) -> &[Self] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    /// The line of a place, or of the last thing on the way to it that is there.
    pub fn line_of(&self, path: &str) -> usize {
        let mut node = self;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match step.strip_suffix(']') {
                Some(index) => index.parse().ok().and_then(|i: usize| node.items().get(i)),
                None => node.field(step),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.line
    }
}

impl From<Spanned<Content>> for Node {
    fn from(spanned: Spanned<Content>) -> Self {
        Self {
            line: usize::try_from(spanned.referenced.line()).unwrap_or(1).max(1),
            content: spanned.value,
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Content, E> {
        Ok(Content::Scalar(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Content, E> {
        Ok(Content::Scalar(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Content, E> {
        Ok(Content::Scalar(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Content, E> {
        // JSON has no NaN: as text it is refused where a number is wanted.
        let number = Number::from_f64(v).map_or_else(|| Value::String(v.to_string()), Value::Number);
        Ok(Content::Scalar(number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Content, E> {
        Ok(Content::Scalar(v.into()))
    }

    fn visit_string<E>(self, v: String) -> Result<Content, E> {
        Ok(Content::Scalar(v.into()))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Content>>()? {
            items.push(item.into());
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut fields: Vec<(String, Node)> = Vec::new();
        while let Some(name) = map.next_key::<Spanned<String>>()? {
            let value: Spanned<Content> = map.next_value()?;
            if fields.iter().any(|(n, _)| *n == name.value) {
                return Err(de::Error::custom(format!("`{}` is there twice", name.value)));
            }
            let line = usize::try_from(name.referenced.line()).unwrap_or(1).max(1);
            fields.push((name.value, Node { line, ..value.into() }));
        }
        Ok(Content::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cuts_at_the_markers() {
        let text = "# nothing\n---\na: 1\n--- # two\nb: |\n  ---x\n---\n\n---\nc: 3";
        let found: Vec<_> = documents(text).iter().map(|d| (d.line, d.text)).collect();
        assert_eq!(
            found,
            [(2, "\na: 1\n"), (4, " # two\nb: |\n  ---x\n"), (9, "\nc: 3")]
        );
    }

    #[test]
    fn remembers_lines() {
        let text = "---\nx: 1\n---\na:\n  - b: yes\n    c: [1, 2.5,\n      \"3\"]\n  - null\nd: 18446744073709551615\n";
        let node = Node::read(documents(text)[1]).unwrap();
        assert_eq!(
            node.value(),
            json!({"a": [{"b": true, "c": [1, 2.5, "3"]}, null], "d": u64::MAX})
        );
        for (path, line) in [
            ("", 4),
            ("a", 4),
            ("a[0].b", 5),
            ("a[0].c[2]", 7),
            ("a[1]", 8),
            ("a[0].missing.deeper", 5),
            ("d", 9),
        ] {
            assert_eq!(node.line_of(path), line, "{path}");
        }
    }

    #[test]
    fn says_where_the_syntax_is_wrong() {
        let text = "a: 1\n---\nb: [1,\nc: 2\n";
        let error = Node::read(documents(text)[1]).unwrap_err();
        assert!((3..=5).contains(&error.line), "{error:?}");
        assert!(!error.message.contains('\n'));
        let error = Node::read(documents("a: 1\nb: 2\na: 3\n")[0]).unwrap_err();
        assert_eq!(error.line, 3, "{error:?}");
    }
}
