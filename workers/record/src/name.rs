//! A metric's name, together with how it stands in a record.
//!
//! A meter's names are the same in each of its records, and there are up to hundreds of them: they are escaped once,
//! when the register map is compiled, and copied from then on.

use std::{fmt, ops::Deref, sync::Arc};

use crate::value::write_json_string;

/// What is copied at a time.
pub(crate) const CHUNK: usize = 16;

/// A metric's name. Cloning it counts a reference.
#[derive(Clone)]
pub struct Name {
    /// The name, right after it `,"name":`, and spaces until that fills whole [`CHUNK`]s.
    text: Arc<str>,
    /// How long the name is, in bytes.
    length: u32,
    /// How long it is as a member.
    member: u32,
}

impl Name {
    /// The name as a member of a JSON object that is not its first: `,"name":`.
    #[must_use]
    pub fn as_member(&self) -> &str {
        let from = self.length as usize;
        let to = from + self.member as usize;
        self.text.get(from..to).unwrap_or_default()
    }

    /// The same in whole chunks with spaces at the end, and its length without them: chunks are copied in fewer
    /// instructions than bytes are.
    pub(crate) fn chunks(&self) -> (&[[u8; CHUNK]], usize) {
        let member = self.text.as_bytes().get(self.length as usize..);
        (member.unwrap_or_default().as_chunks().0, self.member as usize)
    }

    /// Whether this is the same name of the same register map, which costs less than comparing texts.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text)
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        let mut member = String::with_capacity(name.len() + 4);
        member.push(',');
        // Writing to a String cannot fail.
        let _ = write_json_string(&mut member, name);
        member.push(':');
        let whole = member.len().next_multiple_of(CHUNK);
        Self {
            text: format!("{name}{member:whole$}").into(),
            // Names are not gigabytes long.
            length: name.len() as u32,
            member: member.len() as u32,
        }
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        name.as_str().into()
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.text.get(..self.length as usize).unwrap_or_default()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Name {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_itself_and_a_member(text in "\\PC{0,12}") {
            let name = Name::from(text.as_str());
            prop_assert_eq!(&*name, text.as_str());
            let json = format!("{{\"the first of all\":0{}1}}", name.as_member());
            let object: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(&object[text.as_str()], 1);
            let (chunks, length) = name.chunks();
            prop_assert_eq!(&chunks.as_flattened()[..length], name.as_member().as_bytes());
        }
    }
}
