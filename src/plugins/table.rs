//! A plugin's own part of the settings, still raw: each plugin owns the struct that it is read into.
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The options of one plugin, as merged from all layers. Without `plugin` and without what the stage around it takes (see
/// `settings`): only what the plugin itself must understand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(pub Map<String, Value>);

/// Says where inside the table, what was found and what is accepted; `settings` adds file and line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if .key.is_empty() { String::new() } else { format!("{}: ", .key) })]
pub struct BadValue {
    /// Dotted, from the table's top: `tls.ca`. Empty for the table as a whole.
    pub key: String,
    /// `found …, accepted: …`
    pub message: String,
}
impl BadValue {
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }
}

impl Table {
    /// Reads all of it into the plugin's settings struct, which should `deny_unknown_fields`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, BadValue> {
        serde_path_to_error::deserialize(Value::Object(self.0.clone())).map_err(|error| {
            let key = error.path().to_string();
            let message = error.into_inner().to_string();
            // An unknown field's name stands in the message only.
            let unknown = message
                .strip_prefix("unknown field `")
                .and_then(|rest| rest.split('`').next());
            let key = match (key.as_str(), unknown) {
                ("." | "", Some(field)) => field.to_owned(),
                (_, Some(field)) if !key.ends_with(field) => format!("{key}.{field}"),
                (".", None) => String::new(),
                _ => key,
            };
            BadValue { key, message }
        })
    }
}
