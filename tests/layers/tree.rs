//! Reads the sources as a compiler would look at their names: which module names what, through `use` (groups, renames, globs), paths in
//! code, `super::` chains, re-exports, macros and attributes. Code under `cfg(test)` is left out.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{spanned::Spanned, visit::Visit};

/// `crate::actors::root` as its parts. Begins with `crate`, `main` (the binary), or the name of another crate.
pub type Name = Vec<String>;

pub fn name(text: &str) -> Name {
    text.split("::").map(str::to_owned).collect()
}

/// A thing that some module names.
#[derive(Debug, Clone)]
pub struct Mention {
    pub module: Name,
    pub file: PathBuf,
    pub line: usize,
    /// As written, then as it resolves, through each re-export.
    pub names: Vec<Name>,
}

#[derive(Default)]
pub struct Module {
    pub file: PathBuf,
    pub lines: usize,
    /// It has an `impl Actor for …`.
    pub is_actor: bool,
    imports: BTreeMap<String, Name>,
    globs: Vec<Name>,
}

#[derive(Default)]
pub struct Tree {
    pub modules: BTreeMap<Name, Module>,
    pub mentions: Vec<Mention>,
    /// Calls `x.method(…)`: module, file, line, method, and the argument if it is a text.
    pub calls: Vec<(Name, PathBuf, usize, String, Option<String>)>,
}

impl Tree {
    pub fn read(src: &Path) -> Self {
        let mut files = Vec::new();
        collect(src, &mut files);
        files.sort();
        let parsed: Vec<_> = files
            .iter()
            .map(|path| {
                let text = std::fs::read_to_string(path).unwrap();
                let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                (
                    module_of(src, path),
                    path.strip_prefix(src).unwrap(),
                    text.lines().count(),
                    file,
                )
            })
            .collect();
        // A file is a test if whoever declares it says so, or is one.
        let mut tests: Vec<Name> = Vec::new();
        for (module, _, _, file) in &parsed {
            let mut finder = TestModules {
                module: module.clone(),
                found: &mut tests,
            };
            finder.visit_file(file);
        }
        let mut tree = Self::default();
        for (module, path, lines, file) in &parsed {
            if tests.iter().any(|test| module.starts_with(test)) {
                continue;
            }
            let mut reader = Reader {
                tree: &mut tree,
                module: module.clone(),
                file: path,
                found: Vec::new(),
            };
            reader.enter(*lines);
            reader.visit_file(file);
            let found = reader.found;
            tree.mentions.extend(found);
        }
        tree.resolve();
        tree
    }

    /// Turns what was written into what it means, now that all modules are known.
    fn resolve(&mut self) {
        let mut mentions = std::mem::take(&mut self.mentions);
        for mention in &mut mentions {
            let mut name = self.absolute(&mention.module, &mention.names[0], 0);
            mention.names.clear();
            while mention.names.len() < 8 && !mention.names.contains(&name) {
                mention.names.push(name.clone());
                if let Some(next) = self.through_export(&name) {
                    name = next;
                }
            }
        }
        self.mentions = mentions;
    }
    fn absolute(&self, module: &[String], written: &[String], depth: usize) -> Name {
        let (first, rest) = written.split_first().expect("a path has a part");
        let under = |base: &[String], rest: &[String]| [base, rest].concat();
        match first.as_str() {
            "crate" if module[0] == "main" => return under(&module[..1], rest),
            "luffly_agent" => return under(&name("crate"), rest),
            "crate" => return written.to_vec(),
            "self" => return under(module, rest),
            "super" => {
                let parent = &module[..module.len().max(2) - 1];
                return match rest.first().map(String::as_str) {
                    Some("super" | "self") => self.absolute(parent, rest, depth),
                    _ => under(parent, rest),
                };
            }
            _ => {}
        }
        if depth > 8 {
            return written.to_vec();
        }
        self.look_up(module, first, depth)
            .map_or_else(|| written.to_vec(), |base| under(&base, rest))
    }
    /// What a bare name means in a module.
    fn look_up(&self, module: &[String], first: &str, depth: usize) -> Option<Name> {
        let child = [module, &[first.to_owned()]].concat();
        if self.modules.contains_key(&child) {
            return Some(child);
        }
        let here = self.modules.get(module)?;
        if let Some(target) = here.imports.get(first) {
            // `use actix::prelude as actix` must not look itself up.
            let own = target.first().is_some_and(|part| part == first);
            return Some(if own {
                target.clone()
            } else {
                self.absolute(module, target, depth + 1)
            });
        }
        here.globs.iter().filter(|_| depth <= 8).find_map(|glob| {
            let from = self.absolute(module, glob, depth + 1);
            (from != module).then(|| self.look_up(&from, first, depth + 1))?
        })
    }
    /// `crate::a::Thing`, if `a` only passes on what another module has.
    fn through_export(&self, name: &[String]) -> Option<Name> {
        let last = (1..name.len()).rev().find(|&n| self.modules.contains_key(&name[..n]))?;
        if self.modules.contains_key(&name[..last + 1]) {
            return None;
        }
        let base = self.look_up(&name[..last], &name[last], 0)?;
        Some([&base, &name[last + 1..]].concat())
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}
fn module_of(src: &Path, file: &Path) -> Name {
    let inside = file.strip_prefix(src).unwrap().with_extension("");
    let parts = inside.iter().map(|part| part.to_string_lossy().into_owned());
    let mut module: Name = name("crate").into_iter().chain(parts).collect();
    match module[1..].join("/").as_str() {
        "main" => return name("main"),
        "lib" => return name("crate"),
        _ => {}
    }
    module.pop_if(|last| last == "mod");
    module
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let words = || words(attribute.meta.to_token_stream_of());
        let path = attribute.path();
        let test_function = path.segments.last().is_some_and(|s| s.ident == "test");
        test_function || path.is_ident("cfg") && words().contains(&"test".into()) && !words().contains(&"not".into())
    })
}
trait MetaTokens {
    fn to_token_stream_of(&self) -> TokenStream;
}
impl MetaTokens for syn::Meta {
    fn to_token_stream_of(&self) -> TokenStream {
        match self {
            Self::List(list) => list.tokens.clone(),
            Self::NameValue(pair) => match &pair.value {
                syn::Expr::Lit(literal) => TokenTree::from(literal_token(&literal.lit)).into(),
                _ => TokenStream::new(),
            },
            Self::Path(_) => TokenStream::new(),
        }
    }
}
fn literal_token(literal: &syn::Lit) -> proc_macro2::Literal {
    match literal {
        syn::Lit::Str(text) => text.token(),
        _ => proc_macro2::Literal::u8_unsuffixed(0),
    }
}
fn words(tokens: TokenStream) -> Vec<String> {
    let mut found = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => found.extend(words(group.stream())),
            TokenTree::Ident(word) => found.push(word.to_string()),
            _ => {}
        }
    }
    found
}

struct TestModules<'a> {
    module: Name,
    found: &'a mut Vec<Name>,
}
impl<'a> Visit<'a> for TestModules<'_> {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        self.module.push(item.ident.to_string());
        if is_test(&item.attrs) {
            self.found.push(self.module.clone());
        } else {
            syn::visit::visit_item_mod(self, item);
        }
        self.module.pop();
    }
}

struct Reader<'a> {
    tree: &'a mut Tree,
    module: Name,
    file: &'a Path,
    found: Vec<Mention>,
}
impl Reader<'_> {
    fn enter(&mut self, lines: usize) {
        let module = self.tree.modules.entry(self.module.clone()).or_default();
        (module.file, module.lines) = (self.file.to_owned(), lines);
    }
    fn here(&mut self) -> &mut Module {
        self.tree.modules.entry(self.module.clone()).or_default()
    }
    fn mention(&mut self, written: Name, line: usize) {
        self.found.push(Mention {
            module: self.module.clone(),
            file: self.file.to_owned(),
            line,
            names: vec![written],
        });
    }
    fn import(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |part: &syn::Ident| [before, &[part.to_string()]].concat();
        let line = tree.span().start().line;
        match tree {
            syn::UseTree::Path(path) => self.import(&path.tree, &with(&path.ident)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.import(item, before)),
            syn::UseTree::Glob(_) => {
                self.here().globs.push(before.to_vec());
                self.mention(before.to_vec(), line);
            }
            syn::UseTree::Name(_) | syn::UseTree::Rename(_) => {
                let (part, known_as) = match tree {
                    syn::UseTree::Name(one) => (&one.ident, &one.ident),
                    syn::UseTree::Rename(one) => (&one.ident, &one.rename),
                    _ => return,
                };
                let target = if part == "self" { before.to_vec() } else { with(part) };
                let known_as = match known_as.to_string() {
                    itself if itself == "self" => target.last().cloned().unwrap_or_default(),
                    other => other,
                };
                self.here().imports.insert(known_as, target.clone());
                self.mention(target, line);
            }
        }
    }
    /// Paths in what syn does not parse: the insides of macros and attributes.
    fn scan(&mut self, tokens: TokenStream, texts_too: bool) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let is = |i: usize, c: char| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.as_char() == c);
        let mut i = 0;
        while i < tokens.len() {
            match &tokens[i] {
                TokenTree::Group(group) => self.scan(group.stream(), texts_too),
                TokenTree::Literal(literal) if texts_too => {
                    let text = syn::parse_str::<syn::LitStr>(&literal.to_string()).map(|text| text.value());
                    if let Ok(inner) = text.unwrap_or_default().parse::<TokenStream>() {
                        self.scan(inner, false);
                    }
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    let mut path = vec![ident.to_string()];
                    while is(i + 1, ':')
                        && is(i + 2, ':')
                        && let Some(TokenTree::Ident(next)) = tokens.get(i + 3)
                    {
                        path.push(next.to_string());
                        i += 3;
                    }
                    let called = matches!(tokens.get(i + 1), Some(TokenTree::Group(_)));
                    if i > 0 && is(i - 1, '.') && path.len() == 1 {
                        if called {
                            let argument = match tokens.get(i + 1) {
                                Some(TokenTree::Group(group)) => syn::parse2::<syn::LitStr>(group.stream()).ok(),
                                _ => None,
                            };
                            self.call(path[0].clone(), line, argument.map(|text| text.value()));
                        }
                    } else if path.len() > 1 {
                        self.mention(path, line);
                    }
                }
                _ => {}
            }
            i += 1;
        }
    }
    fn call(&mut self, method: String, line: usize, argument: Option<String>) {
        let call = (self.module.clone(), self.file.to_owned(), line, method, argument);
        self.tree.calls.push(call);
    }
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item(&mut self, item: &'a syn::Item) {
        use syn::Item::*;
        let attributes = match item {
            Const(i) => &i.attrs,
            Enum(i) => &i.attrs,
            Fn(i) => &i.attrs,
            Impl(i) => &i.attrs,
            Macro(i) => &i.attrs,
            Mod(i) => &i.attrs,
            Static(i) => &i.attrs,
            Struct(i) => &i.attrs,
            Trait(i) => &i.attrs,
            Type(i) => &i.attrs,
            Use(i) => &i.attrs,
            _ => return syn::visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            syn::visit::visit_item(self, item);
        }
    }
    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if item.content.is_some() {
            self.module.push(item.ident.to_string());
            self.enter(0);
            syn::visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.import(&item.tree, &[]);
    }
    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        if let Some((_, of, _)) = &item.trait_
            && of.segments.last().is_some_and(|part| part.ident == "Actor")
        {
            self.here().is_actor = true;
        }
        syn::visit::visit_item_impl(self, item);
    }
    fn visit_path(&mut self, path: &'a syn::Path) {
        // A single word is a variable, or was brought in by a `use`, which is looked at itself.
        if path.segments.len() > 1 {
            let written = path.segments.iter().map(|part| part.ident.to_string()).collect();
            self.mention(written, path.span().start().line);
        }
        syn::visit::visit_path(self, path);
    }
    fn visit_macro(&mut self, mac: &'a syn::Macro) {
        self.scan(mac.tokens.clone(), false);
        syn::visit::visit_macro(self, mac);
    }
    fn visit_attribute(&mut self, attribute: &'a syn::Attribute) {
        if !attribute.path().is_ident("doc") {
            self.scan(attribute.meta.to_token_stream_of(), true);
            syn::visit::visit_attribute(self, attribute);
        }
    }
    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        let argument = match call.args.first() {
            Some(syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(text),
                ..
            })) => Some(text.value()),
            _ => None,
        };
        self.call(call.method.to_string(), call.method.span().start().line, argument);
        syn::visit::visit_expr_method_call(self, call);
    }
}
