//! stub
use super::*;
pub const PLUGIN: Plugin<Build> = Plugin {
    name: "valid",
    tag: "v1",
    stable: true,
    about: "",
    delivery: "",
    options: &[],
    sample: r#"{ plugin = "valid" }"#,
    check: |_| Ok(()),
    build: |_| Err(PluginError::Failed("stub".into())),
};
