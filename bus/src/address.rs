//! Names on the bus: [`Address`], [`Subject`], [`Filter`].
//!
//! A subject is `chunk("/"chunk)*`: at most 16 chunks and 255 bytes, each chunk of the characters that identifiers
//! may have ([`NAME_CHARACTERS`]), with an optional `@` in front. An address is a subject behind a `/`.
//! A filter is a subject in which a whole chunk may be `*` (any one chunk) and the last may be `**` (any tail, the
//! empty one too: `run/7k2/**` includes `run/7k2`).
//!
//! A chunk that starts with `@` is matched only by itself, never by a wildcard: what is published under `@sys/…`
//! reaches only those who name it.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use eclosion_schemas::ids::{NAME_CHARACTERS, has_name_characters};
use serde::{Deserialize, Serialize};

/// Most chunks in a name.
pub const CHUNKS_MAX: usize = 16;
/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// A name that does not follow the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{value}` is not well formed: {why}")]
pub struct InvalidName {
    pub kind: &'static str,
    /// The first 255 characters of what was given.
    pub value: String,
    pub why: &'static str,
}

impl From<InvalidName> for eclosion_schemas::Error {
    fn from(why: InvalidName) -> Self {
        Self::invalid("name.malformed", why.to_string())
            .help(format!("chunks of {NAME_CHARACTERS} with `/` between them; `*` and `**` in filters"))
    }
}

fn check_chunk(chunk: &str) -> Result<(), &'static str> {
    let bare = chunk.strip_prefix('@').unwrap_or(chunk);
    if bare.is_empty() {
        return Err("a chunk is empty");
    }
    if has_name_characters(bare) { Ok(()) } else { Err("a chunk has a character that names do not have") }
}

fn check_name(text: &str, wildcards: bool) -> Result<(), &'static str> {
    if text.len() > NAME_BYTES_MAX {
        return Err("it is longer than 255 bytes");
    }
    let mut tail_seen = false;
    for (n, chunk) in text.split('/').enumerate() {
        if n == CHUNKS_MAX {
            return Err("it has more than 16 chunks");
        }
        if tail_seen {
            return Err("`**` may only be the last chunk");
        }
        match chunk {
            "*" if wildcards => {}
            "**" if wildcards => tail_seen = true,
            chunk => check_chunk(chunk)?,
        }
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the grammar.
            ///
            /// # Errors
            /// [`InvalidName`] names the kind, the offending value and what is wrong with it.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                let check: fn(&str) -> Result<(), &'static str> = $check;
                check(text).map_err(|why| InvalidName {
                    kind: stringify!($name),
                    value: text.chars().take(NAME_BYTES_MAX).collect(),
                    why,
                })?;
                Ok(Self(text.into()))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// Where messages are sent: `/pool`.
    Address,
    |text| match text.strip_prefix('/') {
        Some(rest) if text.len() <= NAME_BYTES_MAX => check_name(rest, false),
        Some(_) => Err("it is longer than 255 bytes"),
        None => Err("it does not start with `/`"),
    }
);
name!(
    /// What a publication is about: `run/7k2/task/train/state`.
    Subject,
    |text| check_name(text, false)
);
name!(
    /// Which subjects a subscriber wants: `run/*/task/**`.
    Filter,
    |text| check_name(text, true)
);

impl Filter {
    /// Whether a publication about `subject` reaches this filter.
    ///
    /// ```
    /// use eclosion_bus::{Filter, Subject};
    /// let filter = Filter::new("run/*/state")?;
    /// assert!(filter.matches(&Subject::new("run/7k2/state")?));
    /// assert!(!filter.matches(&Subject::new("run/7k2/log")?));
    /// # Ok::<(), eclosion_bus::InvalidName>(())
    /// ```
    #[must_use]
    pub fn matches(&self, subject: &Subject) -> bool {
        let mut wanted = self.0.split('/');
        let mut given = subject.0.split('/');
        loop {
            match (wanted.next(), given.next()) {
                (Some("**"), first) => return first.into_iter().chain(given).all(|c| !c.starts_with('@')),
                (Some("*"), Some(chunk)) if !chunk.starts_with('@') => {}
                (Some(want), Some(chunk)) if want == chunk => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_outside_the_grammar() {
        let long = "x".repeat(256);
        let deep = vec!["a"; 17].join("/");
        for bad in ["", "/", "a//b", "a/", "/a", "a b", "*", "a/**", "@", "a/@@b", "é", &long, &deep] {
            assert!(Subject::new(bad).is_err(), "{bad}");
        }
        for bad in ["", "/", "pool", "//pool", "/pool/", "/*"] {
            assert!(Address::new(bad).is_err(), "{bad}");
        }
        for bad in ["**/a", "a/**/b", "a*", "a/***", "@*"] {
            assert!(Filter::new(bad).is_err(), "{bad}");
        }
        assert!(Subject::new(vec!["a"; 16].join("/")).is_ok());
        assert!(Subject::new("run/7k2/task/train[3]/state").is_ok());
        assert!(Address::new("/service/@inner").is_ok());
    }

    #[test]
    fn filters_match_by_chunks() {
        let table = [
            ("a", "a", true),
            ("a", "a/b", false),
            ("a/b", "a", false),
            ("*", "a", true),
            ("*", "a/b", false),
            ("a/*", "a/b", true),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/d", false),
            ("**", "a", true),
            ("**", "a/b/c", true),
            ("a/**", "a", true),
            ("a/**", "a/b/c", true),
            ("a/**", "ab/c", false),
            ("a/*/**", "a", false),
            ("a/*/**", "a/b", true),
        ];
        for (filter, subject, wanted) in table {
            let matches = Filter::new(filter).unwrap().matches(&Subject::new(subject).unwrap());
            assert_eq!(matches, wanted, "{filter} on {subject}");
        }
    }

    #[test]
    fn a_chunk_behind_an_at_sign_is_matched_only_by_itself() {
        let table = [
            ("**", "@sys/load", false),
            ("*/load", "@sys/load", false),
            ("@sys/**", "@sys/load", true),
            ("@sys/*", "@sys/@inner", false),
            ("a/**", "a/b/@inner", false),
            ("a/*/@inner", "a/b/@inner", true),
        ];
        for (filter, subject, wanted) in table {
            let matches = Filter::new(filter).unwrap().matches(&Subject::new(subject).unwrap());
            assert_eq!(matches, wanted, "{filter} on {subject}");
        }
    }

    #[test]
    fn names_survive_serialization_and_are_checked_on_the_way_in() {
        let json = serde_json::to_string(&Address::new("/pool").unwrap()).unwrap();
        assert_eq!(json, "\"/pool\"");
        assert!(serde_json::from_str::<Address>("\"pool\"").is_err());
    }
}
