//! A value that is never written down: it prints, serializes and compares as its name alone.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What a flow, event or log holds instead of the value: `secret:NAME`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct SecretRef(String);

impl SecretRef {
    /// `None` unless the text is `secret:NAME` with a NAME of letters, digits and `_`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("secret:")?;
        let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        fits.then(|| Self(text.to_owned()))
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.0.strip_prefix("secret:").unwrap_or(&self.0)
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A resolved secret, on its way to a worker's socket. It cannot be deserialized from anything stored, and what it
/// serializes to is only its placeholder; the one way to the text is [`Secret::expose`].
#[derive(Clone)]
pub struct Secret {
    name: SecretRef,
    text: String,
}

impl Secret {
    #[must_use]
    pub fn new(name: SecretRef, text: String) -> Self {
        Self { name, text }
    }

    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.name.serialize(serializer)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // Overwritten before it is freed, as far as safe code can promise.
        let length = self.text.len();
        self.text.clear();
        self.text.extend(std::iter::repeat_n('\0', length));
        std::hint::black_box(&self.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_only_its_name() {
        let Some(name) = SecretRef::parse("secret:TOKEN") else { panic!("well formed") };
        let secret = Secret::new(name, "canary-7f3a".into());
        let shown = format!("{secret:?} {}", serde_json::to_string(&secret).unwrap());
        assert!(!shown.contains("canary"), "{shown}");
        assert_eq!(secret.expose(), "canary-7f3a");
        assert!(SecretRef::parse("secret:").is_none());
    }
}
