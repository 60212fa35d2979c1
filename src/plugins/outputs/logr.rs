//! stub
use super::*;
pub const PLUGIN: Plugin<Build> = Plugin {
    name: "logr",
    tag: "v1",
    stable: true,
    about: "",
    delivery: "",
    options: &[],
    sample: r#"{ plugin = "logr" }"#,
    check: |_| Ok(()),
    build: |_, _| Err(PluginError::Failed("stub".into())),
};
