//! stub
use super::*;
pub const PLUGIN_V1: Plugin<Build> = Plugin {
    name: "file",
    tag: "v1",
    stable: true,
    about: "",
    delivery: "",
    options: &[],
    sample: r#"{ plugin = "file:v1", paths = ["/var/log/*.log"] }"#,
    check: |_| Ok(()),
    build: |_, _| Err(PluginError::Failed("stub".into())),
};
