//! `agent plugins [NAME]`: the catalog, straight from what is built in.
use serde_json::{Value, json};

use super::{Done, Failed, print, show};
use crate::{
    model::PluginName,
    plugins::{Opt, Plugin, filters, inputs, outputs},
};

pub(super) struct Row {
    pub kind: &'static str,
    pub name: &'static str,
    pub tag: &'static str,
    pub stable: bool,
    pub about: &'static str,
    pub delivery: &'static str,
    pub options: &'static [Opt],
    pub sample: &'static str,
}
fn rows<B>(kind: &'static str, catalog: &'static [Plugin<B>]) -> impl Iterator<Item = Row> {
    catalog.iter().map(move |plugin| Row {
        kind,
        name: plugin.name,
        tag: plugin.tag,
        stable: plugin.stable,
        about: plugin.about,
        delivery: plugin.delivery,
        options: plugin.options,
        sample: plugin.sample,
    })
}
pub(super) fn catalog() -> Vec<Row> {
    rows("input", inputs::CATALOG)
        .chain(rows("filter", filters::CATALOG))
        .chain(rows("output", outputs::CATALOG))
        .collect()
}

pub fn run(name: Option<&str>, json: bool) -> Done {
    let mut rows = catalog();
    if let Some(name) = name {
        let wanted = name.parse::<PluginName>().map_err(Failed::usage)?;
        let all = rows
            .iter()
            .map(|row| format!("{}:{}", row.name, row.tag))
            .collect::<Vec<_>>()
            .join(", ");
        rows.retain(|row| row.name == wanted.name && wanted.tag.as_ref().is_none_or(|tag| row.tag == tag));
        if rows.is_empty() {
            return Err(Failed::usage(format!("unknown plugin `{wanted}`, accepted: {all}")));
        }
    }
    print(&match (json, name) {
        (true, _) => show::json(&rows.iter().map(Row::json).collect()),
        (false, None) => list(&rows),
        (false, Some(_)) => rows.iter().map(Row::page).collect::<Vec<_>>().join("\n"),
    });
    Ok(0)
}

/// Two short lines a plugin: what it does, and what it promises. `agent plugins NAME` has the whole of both.
fn list(rows: &[Row]) -> String {
    let short = |text: &str| {
        let end = text.find(['.', ';']).unwrap_or(text.len());
        text[..end].to_owned()
    };
    let mut table = vec![
        ["KIND", "PLUGIN", "WHAT, AND WHAT IT PROMISES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for row in rows {
        let stable = if row.stable { "" } else { " (not stable)" };
        let name = format!("{}:{}{stable}", row.name, row.tag);
        table.push(vec![row.kind.to_owned(), name, short(row.about)]);
        table.push(vec![String::new(), String::new(), short(row.delivery)]);
    }
    show::table(&table)
}

impl Row {
    fn json(&self) -> Value {
        let options = self.options.iter();
        json!({
            "kind": self.kind, "name": self.name, "tag": self.tag, "stable": self.stable, "about": self.about,
            "delivery": self.delivery, "sample": self.sample,
            "options": options.map(|o| json!({ "name": o.name, "default": o.default, "about": o.about })).collect::<Vec<_>>(),
        })
    }
    fn page(&self) -> String {
        let mut out = format!("{} {}:{}\n  {}\n", self.kind, self.name, self.tag, self.about);
        if !self.delivery.is_empty() {
            out += &format!("  delivery: {}\n", self.delivery);
        }
        if !self.options.is_empty() {
            let mut table = vec![["OPTION", "DEFAULT", "MEANING"].map(str::to_owned).to_vec()];
            let row = |o: &Opt| [o.name, o.default, o.about].map(str::to_owned).to_vec();
            table.extend(self.options.iter().map(row));
            for line in show::table(&table).lines() {
                out += &format!("  {line}\n");
            }
        }
        out + &format!("  sample: {}\n", self.sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plugin_has_its_page() {
        for row in catalog() {
            let page = row.page();
            assert!(page.starts_with(&format!("{} {}:{}\n", row.kind, row.name, row.tag)));
            assert!(page.contains(row.sample));
            for option in row.options {
                assert!(page.contains(option.about), "{}: {}", row.name, option.name);
            }
            assert_eq!(row.json()["options"].as_array().unwrap().len(), row.options.len());
        }
        let list = list(&catalog());
        assert_eq!(list.lines().count(), 1 + 2 * catalog().len());
    }
}
