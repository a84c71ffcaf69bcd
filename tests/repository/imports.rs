//! Modules form layers: below every module, the subtrees of its submodules import each other in one
//! direction only. A parent and its own submodules may import each other.
//!
//! Test code does not count. Names that a parent re-exports lead to where they are defined.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, ItemMod, UseTree, Visibility};

/// The root file of each crate.
const CRATES: [&str; 9] = [
    "algorithms/src/lib.rs",
    "control/src/lib.rs",
    "verbs/src/lib.rs",
    "transport/src/lib.rs",
    "cuda/src/lib.rs",
    "src/lib.rs",
    "ffi/src/lib.rs",
    "bench/src/lib.rs",
    "tests/fake-verbs/src/lib.rs",
];

/// The names from the root of a crate to a module.
type ModulePath = Vec<String>;

/// What one module mentions.
#[derive(Default)]
struct Module {
    /// Paths that begin with `crate`, `self` or `super`, as they are written.
    mentions: BTreeSet<Vec<String>>,
    /// Names that the module re-exports or imports, with the path that each stands for.
    imported: BTreeMap<String, Vec<String>>,
    /// The submodules.
    children: BTreeSet<String>,
}

/// All modules of a crate.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

#[test]
fn imports_form_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut report = String::new();
    for file in CRATES {
        let mut krate = Crate::default();
        let path = root.join(file);
        let items = parse(&path);
        krate.add(&[], items, &path, path.parent().expect("a folder"));
        assert!(krate.modules.len() > 3, "{file} has modules");
        for circle in krate.circles() {
            writeln!(report, "{file}: {circle}").expect("a string");
        }
    }
    assert!(report.is_empty(), "modules import each other in circles:\n{report}");
}

#[test]
fn a_circle_is_found() {
    let mut krate = Crate::default();
    let source = "mod a { pub mod x { use crate::b::B; } pub struct A; }
                  mod b { use crate::A; pub struct B; }
                  mod c { use crate::{a::A, b}; use super::b::B; }
                  pub use a::A;";
    let items = syn::parse_file(source).expect("it is Rust").items;
    krate.add(&[], items, Path::new("lib.rs"), Path::new("."));
    let circles = krate.circles();
    assert_eq!(circles.len(), 1, "{circles:?}");
    assert!(circles[0].contains("a::x -> b") && circles[0].contains("b -> a"), "{circles:?}");
}

fn parse(file: &Path) -> Vec<Item> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display())).items
}

/// Whether an item is compiled for tests alone.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string().replace(' ', "");
        text.contains("cfg(test)") || text.contains("cfg(all(test") || text == "#[test]"
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Fn(it) => &it.attrs,
        Item::Impl(it) => &it.attrs,
        Item::Mod(it) => &it.attrs,
        Item::Struct(it) => &it.attrs,
        Item::Use(it) => &it.attrs,
        Item::Const(it) => &it.attrs,
        Item::Static(it) => &it.attrs,
        Item::Macro(it) => &it.attrs,
        _ => &[],
    }
}

impl Crate {
    /// Adds a module with its submodules; `folder` is where the files of submodules lie.
    fn add(&mut self, path: &[String], items: Vec<Item>, file: &Path, folder: &Path) {
        let mut module = Module::default();
        for item in items {
            if for_tests(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(child) => {
                    let name = child.ident.to_string();
                    module.children.insert(name.clone());
                    let path: ModulePath = path.iter().cloned().chain([name.clone()]).collect();
                    let (items, file) = content(child, file, folder);
                    self.add(&path, items, &file, &folder.join(name));
                }
                Item::Use(it) => {
                    let public = !matches!(it.vis, Visibility::Inherited);
                    collect_use(&it.tree, &mut Vec::new(), &mut module, public);
                }
                other => collect_paths(other.to_token_stream(), &mut module.mentions),
            }
        }
        self.modules.insert(path.to_vec(), module);
    }

    /// The module that defines what `path`, written in the module `from`, stands for.
    fn resolve(&self, from: &[String], path: &[String], depth: u32) -> Option<ModulePath> {
        let mut at: ModulePath = from.to_vec();
        let mut rest = path;
        while let [first, others @ ..] = rest {
            match &**first {
                "crate" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                name => {
                    let module = self.modules.get(&at)?;
                    if module.children.contains(name) {
                        at.push(name.to_string());
                    } else if let Some(source) = module.imported.get(name).filter(|_| depth < 8) {
                        let mut full = source.clone();
                        full.extend_from_slice(others);
                        return self.resolve(&at, &full, depth + 1);
                    } else {
                        return Some(at);
                    }
                }
            }
            rest = others;
        }
        Some(at)
    }

    /// Each group of siblings that import each other, with the imports between them.
    fn circles(&self) -> Vec<String> {
        let mut edges: BTreeSet<(ModulePath, ModulePath)> = BTreeSet::new();
        for (from, module) in &self.modules {
            for path in &module.mentions {
                if let Some(to) = self.resolve(from, path, 0).filter(|to| to != from) {
                    edges.insert((from.clone(), to));
                }
            }
        }
        let mut circles = Vec::new();
        for (parent, module) in &self.modules {
            let depth = parent.len();
            let below = |path: &ModulePath| {
                (path.starts_with(parent) && path.len() > depth).then(|| path[depth].clone())
            };
            let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (from, to) in &edges {
                if let (Some(from), Some(to)) = (below(from), below(to))
                    && from != to
                {
                    graph.entry(from).or_default().insert(to);
                }
            }
            let mut done = BTreeSet::new();
            for child in &module.children {
                let circle: BTreeSet<String> = reachable(&graph, child)
                    .into_iter()
                    .filter(|other| reachable(&graph, other).contains(child))
                    .collect();
                if circle.is_empty() || !done.insert(circle.clone()) {
                    continue;
                }
                let inside = |path: &ModulePath| below(path).filter(|name| circle.contains(name));
                let imports = edges.iter().filter(
                    |(from, to)| matches!((inside(from), inside(to)), (Some(a), Some(b)) if a != b),
                );
                let imports: Vec<String> = imports
                    .map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::")))
                    .collect();
                circles.push(format!("{circle:?}\n    {}", imports.join("\n    ")));
            }
        }
        circles
    }
}

/// What `start` imports, directly or not; with itself only if it is in a circle.
fn reachable(graph: &BTreeMap<String, BTreeSet<String>>, start: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![start.to_string()];
    while let Some(name) = open.pop() {
        for next in graph.get(&name).into_iter().flatten() {
            if found.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    found
}

/// The items of a submodule, and the file that they stand in.
fn content(child: ItemMod, file: &Path, folder: &Path) -> (Vec<Item>, PathBuf) {
    if let Some((_, items)) = child.content {
        return (items, file.to_path_buf());
    }
    let name = child.ident.to_string();
    let candidates = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
    let found = candidates.into_iter().find(|path| path.exists());
    let found = found.unwrap_or_else(|| panic!("{}: no file for mod {name}", file.display()));
    (parse(&found), found)
}

fn collect_use(tree: &UseTree, prefix: &mut Vec<String>, module: &mut Module, public: bool) {
    let mut leaf = |prefix: &[String], name: &str, alias: String| {
        let mut path = prefix.to_vec();
        if name != "self" {
            path.push(name.to_string());
        }
        if matches!(path.first().map(String::as_str), Some("crate" | "self" | "super")) {
            module.mentions.insert(path.clone());
        }
        if public || path.len() > 1 {
            module.imported.entry(alias).or_insert(path);
        }
    };
    match tree {
        UseTree::Path(it) => {
            prefix.push(it.ident.to_string());
            collect_use(&it.tree, prefix, module, public);
            prefix.pop();
        }
        UseTree::Name(it) => {
            let name = it.ident.to_string();
            let alias = if name == "self" { prefix.last().cloned() } else { Some(name.clone()) };
            leaf(prefix, &name, alias.unwrap_or_default());
        }
        UseTree::Rename(it) => leaf(prefix, &it.ident.to_string(), it.rename.to_string()),
        UseTree::Glob(_) => {
            let path = prefix.clone();
            if matches!(path.first().map(String::as_str), Some("crate" | "self" | "super")) {
                module.mentions.insert(path);
            }
        }
        UseTree::Group(it) => {
            for tree in &it.items {
                collect_use(tree, prefix, module, public);
            }
        }
    }
}

/// Finds `crate::a::b` and the like in code, also inside macros.
fn collect_paths(tokens: TokenStream, found: &mut BTreeSet<Vec<String>>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut i = 0;
    while i < tokens.len() {
        match &tokens[i] {
            TokenTree::Group(group) => collect_paths(group.stream(), found),
            TokenTree::Ident(first) => {
                let mut path = vec![first.to_string()];
                while is_colon(tokens.get(i + 1)) && is_colon(tokens.get(i + 2)) {
                    let Some(TokenTree::Ident(next)) = tokens.get(i + 3) else { break };
                    path.push(next.to_string());
                    i += 3;
                }
                if path.len() > 1 && matches!(&*path[0], "crate" | "self" | "super") {
                    found.insert(path);
                }
            }
            _ => {}
        }
        i += 1;
    }
}

fn is_colon(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}
