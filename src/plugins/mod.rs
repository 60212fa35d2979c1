//! What a pipeline is made of. A plugin is a plain struct behind a plain trait: it knows `model`, `clock`, `os` and slog only, and
//! nothing of actors. Adding one touches its own file and one line of its CATALOG.
pub mod filters;
pub mod framing;
pub mod inputs;
pub mod json;
pub mod outputs;
pub mod table;
pub mod tls;

pub use table::{BadValue, Table};

use crate::model::PluginName;

/// One option of a plugin, for `agent plugins NAME`, docs/plugins.md, and a test that compares it with the settings struct.
pub struct Opt {
    pub name: &'static str,
    /// As it would be written in TOML; `required` if there is none.
    pub default: &'static str,
    pub about: &'static str,
}

/// A row of a CATALOG. `B` is the function that builds the plugin from its table.
pub struct Plugin<B: 'static> {
    pub name: &'static str,
    pub tag: &'static str,
    /// `name` alone picks the newest stable one.
    pub stable: bool,
    pub about: &'static str,
    /// One sentence: what is promised about delivery (inputs: rewinding; outputs: what `delivered` means).
    pub delivery: &'static str,
    pub options: &'static [Opt],
    /// An inline table as in a `[[pipeline]]`; a test builds it.
    pub sample: &'static str,
    pub check: fn(&Table) -> Result<(), BadValue>,
    pub build: B,
}

/// Why a plugin could not be made or mounted: what was tried and what the system said.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error(transparent)]
    Bad(#[from] BadValue),
    #[error("{0}")]
    Failed(String),
}

/// Finds what `name:tag` means, or says what there is.
pub fn find<'a, B>(catalog: &'a [Plugin<B>], kind: &str, wanted: &PluginName) -> Result<&'a Plugin<B>, String> {
    let mut named = catalog.iter().filter(|p| p.name == wanted.name).collect::<Vec<_>>();
    if named.is_empty() {
        let all = catalog
            .iter()
            .map(|p| p.name)
            .collect::<std::collections::BTreeSet<_>>();
        return Err(format!(
            "unknown {kind} plugin `{wanted}`, accepted: {}",
            all.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    let tags = named
        .iter()
        .map(|p| format!("{}:{}", p.name, p.tag))
        .collect::<Vec<_>>()
        .join(", ");
    match &wanted.tag {
        Some(tag) => named.retain(|p| p.tag == tag),
        None => named.retain(|p| p.stable),
    }
    named
        .into_iter()
        .max_by_key(|p| p.tag)
        .ok_or_else(|| format!("unknown {kind} plugin `{wanted}`, accepted: {tags}"))
}
