//! stub
use super::*;
pub const PLUGIN: Plugin<Build> = Plugin {
    name: "stdout",
    tag: "v1",
    stable: true,
    about: "",
    delivery: "",
    options: &[],
    sample: r#"{ plugin = "stdout" }"#,
    check: |_| Ok(()),
    build: |_, _| Err(PluginError::Failed("stub".into())),
};
