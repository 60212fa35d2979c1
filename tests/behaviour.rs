//! docs/operating.md has a row for every case of the behaviour page, and each test that a row names is there.
use std::{collections::BTreeMap, fs, path::Path};

#[test]
fn every_case_has_its_row_and_every_test_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/operating.md")).unwrap();
    let (_, table) = page.split_once("| case | what holds | shown by |\n").unwrap();
    let (mut cases, mut texts, mut faults) = (vec![], BTreeMap::new(), vec![]);
    for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cells = row.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>();
        let [case, _, shown] = cells[..] else {
            panic!("not three cells: {row}");
        };
        cases.push(case.to_owned());
        let named = shown.split('`').skip(1).step_by(2).collect::<Vec<_>>();
        if named.is_empty() && !shown.contains("not built yet") {
            faults.push(format!("case {case} is shown by nothing"));
        }
        for test in named {
            let (file, name) = test.split_once("::").unwrap();
            let text = texts.entry(file.to_owned()).or_insert_with(|| {
                let of = |path: String| fs::read_to_string(root.join(path));
                of(format!("tests/{file}.rs"))
                    .or_else(|_| of(format!("src/{file}.rs")))
                    .unwrap_or_default()
            });
            let found = text.split(&format!("fn {name}(")).collect::<Vec<_>>();
            let is_test = found.len() == 2 && found[0].trim_end_matches("async ").trim_end().ends_with(']');
            if !is_test {
                faults.push(format!("case {case}: {test} is no test"));
            }
        }
    }
    let mut expected = (1..=102).map(|n| n.to_string()).collect::<Vec<_>>();
    expected.insert(33, "33b".to_owned());
    assert_eq!(cases, expected);
    assert_eq!(faults, Vec::<String>::new());
}
