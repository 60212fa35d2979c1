//! stub
use super::*;
pub const PLUGIN: Plugin<Build> = Plugin {
    name: "stdin",
    tag: "v1",
    stable: true,
    about: "",
    delivery: "",
    options: &[],
    sample: r#"{ plugin = "stdin" }"#,
    check: |_| Ok(()),
    build: |_, _| Err(PluginError::Failed("stub".into())),
};
