//! `name:tag`, as plugins are picked: `file:v1`, or `file` alone for the newest stable one.
use std::{fmt, str::FromStr};

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginName {
    pub name: String,
    pub tag: Option<String>,
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tag {
            Some(tag) => write!(f, "{}:{tag}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for PluginName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let word = |s: &str| {
            !s.is_empty()
                && s.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        };
        let (name, tag) = match text.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (text, None),
        };
        if !word(name) || tag.is_some_and(|tag| !word(tag)) {
            return Err(format!(
                "found `{text}`, accepted is a plugin as `name` or `name:tag`, for example `file:v1`"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, name, tag) in [("file", "file", None), ("file:v1", "file", Some("v1"))] {
            let parsed: PluginName = text.parse().unwrap();
            assert_eq!((parsed.name.as_str(), parsed.tag.as_deref()), (name, tag));
            assert_eq!(parsed.to_string(), text);
        }
        for bad in ["", ":", "file:", ":v1", "File", "a b", "a:b:c"] {
            assert!(bad.parse::<PluginName>().is_err(), "{bad}");
        }
    }
}
