//! The modules of `src` import each other one way: of those beside each other, with all that is
//! below each, no two lead back to one another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// The names from the root of the crate down to a module.
type ModulePath = Vec<String>;

/// What one file says of names: those that it uses, and those that its imports give it.
struct File {
    module: ModulePath,
    /// How many inline modules the visited item is in.
    depth: usize,
    used: Vec<ModulePath>,
    imported: BTreeMap<String, ModulePath>,
}

impl File {
    /// Notes a path that begins with `crate`, `self` or `super`, from the root of the crate.
    fn note(&mut self, segments: &[String], name: Option<&str>) {
        let mut base: ModulePath = self.module.clone();
        let mut rest = segments;
        let inline = (0..self.depth).map(|_| String::new());
        base.extend(inline);
        match rest.first().map(String::as_str) {
            Some("crate") => base.clear(),
            Some("self" | "super") => {}
            _ => return,
        }
        while let Some(first @ ("crate" | "self" | "super")) = rest.first().map(String::as_str) {
            if first == "super" {
                base.pop();
            }
            rest = &rest[1..];
        }
        if base.len() <= self.module.len() {
            base.extend(rest.iter().cloned());
            if let Some(name) = name {
                self.imported.insert(name.to_owned(), base.clone());
            }
            self.used.push(base);
        }
    }

    fn note_tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.note_tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Group(group) => {
                group
                    .items
                    .iter()
                    .for_each(|tree| self.note_tree(tree, before));
            }
            // A name of `use a::{self}` is that of `a`.
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.note(before, before.last().map(String::as_str));
            }
            syn::UseTree::Name(name) => {
                self.note(&with(&name.ident), Some(&name.ident.to_string()));
            }
            syn::UseTree::Rename(name) => {
                self.note(&with(&name.ident), Some(&name.rename.to_string()));
            }
            syn::UseTree::Glob(_) => self.note(before, None),
        }
    }
}

impl<'ast> Visit<'ast> for File {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // A test may look at whatever it likes.
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .meta
                    .require_list()
                    .is_ok_and(|list| list.tokens.to_string() == "test")
        };
        if !item.attrs.iter().any(is_test) {
            self.depth += 1;
            visit::visit_item_mod(self, item);
            self.depth -= 1;
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // Names of child modules, as in `pub use child::Name`, are paths of this module's own.
        let mut tree = &item.tree;
        if let syn::UseTree::Path(path) = tree {
            let first = path.ident.to_string();
            if matches!(first.as_str(), "crate" | "self" | "super") {
                tree = &path.tree;
                return self.note_tree(tree, &[first]);
            }
        }
        self.note_tree(tree, &["self".to_owned()]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.note(&segments.collect::<Vec<_>>(), None);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        // What is in the call of a macro is words to the parser: paths stand in it as they do here.
        let text = call.tokens.to_string().replace(" :: ", "::");
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        for path in words.filter(|word| word.contains("::")) {
            self.note(
                &path.split("::").map(str::to_owned).collect::<Vec<_>>(),
                None,
            );
        }
    }
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn read(path: &Path, root: &Path) -> File {
    let text = fs::read_to_string(path).expect("a readable source");
    let inside = path
        .strip_prefix(root)
        .expect("below the root")
        .with_extension("");
    let mut module: ModulePath = inside
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if module == ["lib"] {
        module.clear();
    }
    let mut file = File {
        module,
        depth: 0,
        used: Vec::new(),
        imported: BTreeMap::new(),
    };
    file.visit_file(&syn::parse_file(&text).expect("Rust"));
    file
}

/// The module that a path leads to, through all that hands its name on.
fn resolve(path: &[String], files: &BTreeMap<ModulePath, File>) -> Option<ModulePath> {
    let mut path = path.to_vec();
    // No name is handed on so often.
    for _ in 0..16 {
        let length = (0..=path.len())
            .rev()
            .find(|at| files.contains_key(&path[..*at]))?;
        let (module, rest) = path.split_at(length);
        match rest
            .first()
            .and_then(|name| files[module].imported.get(name))
        {
            Some(origin) if *origin != path => path = [&origin[..], &rest[1..]].concat(),
            _ => return Some(module.to_vec()),
        }
    }
    None
}

/// The modules on a way from `start` back to itself.
fn circle(start: &str, arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in arrows.get(way.last()?).into_iter().flatten() {
            if next == start {
                return Some(way);
            }
            if seen.insert(next) {
                ways.push([&way[..], std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}

#[test]
fn no_module_imports_one_that_leads_back_to_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    rust_files(&root, &mut paths);
    let files: BTreeMap<ModulePath, File> = paths
        .iter()
        .filter(|path| !path.ends_with("tests.rs"))
        .map(|path| read(path, &root))
        .map(|file| (file.module.clone(), file))
        .collect();
    // Of the modules in one module, which uses which, and by what.
    let mut levels: BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let mut reasons = BTreeMap::new();
    for file in files.values() {
        for used in &file.used {
            let Some(target) = resolve(used, &files) else {
                continue;
            };
            let pairs = file.module.iter().zip(&target);
            let shared = pairs.take_while(|(one, other)| one == other).count();
            // A module and what is in it are one.
            if let (Some(from), Some(to)) = (file.module.get(shared), target.get(shared)) {
                let level = levels.entry(target[..shared].to_vec()).or_default();
                level.entry(from.clone()).or_default().insert(to.clone());
                let reason = format!("{} uses {}", file.module.join("::"), used.join("::"));
                reasons.insert(
                    (target[..shared].to_vec(), from.clone(), to.clone()),
                    reason,
                );
            }
        }
    }
    assert!(reasons.len() > 100, "imports are read: {reasons:?}");
    for (level, arrows) in &levels {
        for module in arrows.keys() {
            if let Some(way) = circle(module, arrows) {
                let next = way.iter().cycle().skip(1);
                let reason = |(from, to): (&String, &String)| {
                    reasons[&(level.clone(), from.clone(), to.clone())].clone()
                };
                let way: Vec<String> = way.iter().zip(next).map(reason).collect();
                panic!("a circle of imports: {}", way.join(", "));
            }
        }
    }
}
