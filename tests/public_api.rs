//! What the library offers stands in `tests/snapshots/public-api.txt`: a change of it is seen.
//! `UPDATE_SNAPSHOTS=1` accepts one. What its documentation hides is for the program alone, and
//! left out here too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, mem};
use syn::{Fields, ImplItem, Item, TraitItem, Visibility};

/// The items of all files, and what each file hands on from its child modules.
#[derive(Default)]
struct Sources {
    items: Vec<(PathBuf, Item)>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Keeps what a user of an item can rely on.
fn keep(attribute: &syn::Attribute) -> bool {
    ["derive", "non_exhaustive", "must_use"]
        .iter()
        .any(|name| attribute.path().is_ident(name))
}

fn is_hidden(attributes: &[syn::Attribute]) -> bool {
    let mut lists = attributes.iter().filter_map(|attribute| {
        let list = attribute.meta.require_list().ok()?;
        list.path.is_ident("doc").then_some(list)
    });
    lists.any(|list| list.tokens.to_string() == "hidden")
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| attribute.path().is_ident("cfg"))
}

impl Sources {
    fn read(directory: &Path) -> Self {
        let mut sources = Self::default();
        sources.add(directory);
        sources
    }

    fn add(&mut self, directory: &Path) {
        let entries = fs::read_dir(directory).expect("a directory of sources");
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        for path in paths {
            // The program is no part of the library.
            if path.is_dir() && !path.ends_with("cli") {
                self.add(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                let text = fs::read_to_string(&path).expect("a readable source");
                let file = syn::parse_file(&text).expect("Rust");
                let items = file.items.into_iter();
                self.items.extend(items.map(|item| (path.clone(), item)));
            }
        }
    }

    /// The item of this name; the library gives each public name once.
    fn named(&self, name: &str) -> Item {
        let is_it = |item: &Item| {
            let (ident, visibility) = match item {
                Item::Struct(item) => (&item.ident, &item.vis),
                Item::Enum(item) => (&item.ident, &item.vis),
                Item::Trait(item) => (&item.ident, &item.vis),
                Item::Type(item) => (&item.ident, &item.vis),
                Item::Fn(item) => (&item.sig.ident, &item.vis),
                _ => return false,
            };
            ident == name && is_public(visibility)
        };
        let mut found = self.items.iter().filter(|(_, item)| is_it(item));
        let (_, item) = found
            .next()
            .unwrap_or_else(|| panic!("no public item is called {name}"));
        assert!(found.next().is_none(), "two public items are called {name}");
        item.clone()
    }

    /// Its implementations: the public functions, and the traits.
    fn implementations<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Item> + 'a {
        self.items.iter().filter_map(move |(_, item)| {
            let Item::Impl(item) = item else { return None };
            let syn::Type::Path(path) = &*item.self_ty else {
                return None;
            };
            let is_its = path.path.segments.last()?.ident == name && !is_for_tests(&item.attrs);
            if !is_its {
                return None;
            }
            let mut item = item.clone();
            item.attrs.clear();
            let is_of_a_trait = item.trait_.is_some();
            item.items.retain(|item| match item {
                ImplItem::Fn(function) => {
                    !is_of_a_trait && is_public(&function.vis) && !is_hidden(&function.attrs)
                }
                ImplItem::Const(constant) => !is_of_a_trait && is_public(&constant.vis),
                _ => is_of_a_trait,
            });
            for item in &mut item.items {
                if let ImplItem::Fn(function) = item {
                    function.attrs.retain(keep);
                    function.block = syn::parse_quote!({});
                }
            }
            (is_of_a_trait || !item.items.is_empty()).then_some(Item::Impl(item))
        })
    }
}

/// The public fields, and a mark where there are others.
fn public_fields(fields: &mut Fields) {
    let list = match fields {
        Fields::Named(named) => &mut named.named,
        Fields::Unnamed(unnamed) => &mut unnamed.unnamed,
        Fields::Unit => return,
    };
    let is_named = list.iter().any(|field| field.ident.is_some());
    let mut has_others = false;
    for mut field in mem::take(list) {
        if is_public(&field.vis) {
            field.attrs.clear();
            list.push(field);
        } else {
            has_others = true;
        }
    }
    if has_others && is_named {
        let mark: syn::FieldsNamed = syn::parse_quote!({ private_fields: _ });
        list.extend(mark.named);
    }
}

/// The item without documentation, bodies and what is private.
fn outline(mut item: Item) -> Item {
    match &mut item {
        Item::Struct(item) => {
            item.attrs.retain(keep);
            public_fields(&mut item.fields);
        }
        Item::Enum(item) => {
            item.attrs.retain(keep);
            for variant in &mut item.variants {
                variant.attrs.retain(keep);
                variant
                    .fields
                    .iter_mut()
                    .for_each(|field| field.attrs.clear());
            }
        }
        Item::Trait(item) => {
            item.attrs.retain(keep);
            for item in &mut item.items {
                if let TraitItem::Fn(function) = item {
                    function.attrs.retain(keep);
                    function.default = function.default.take().map(|_| syn::parse_quote!({}));
                }
            }
        }
        Item::Fn(item) => {
            item.attrs.retain(keep);
            item.block = syn::parse_quote!({});
        }
        Item::Type(item) => item.attrs.clear(),
        _ => {}
    }
    item
}

/// The names that a `pub use` gives.
fn names(tree: &syn::UseTree, found: &mut BTreeSet<String>) {
    match tree {
        syn::UseTree::Path(path) => names(&path.tree, found),
        syn::UseTree::Group(group) => group.items.iter().for_each(|tree| names(tree, found)),
        syn::UseTree::Name(name) => {
            found.insert(name.ident.to_string());
        }
        _ => panic!("each item is given by its own name"),
    }
}

/// The public names of one file: those that it hands on, and its own.
fn public_names(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).expect("a readable source");
    let mut found = BTreeSet::new();
    for item in syn::parse_file(&text).expect("Rust").items {
        let (visibility, ident) = match &item {
            Item::Use(item) if is_public(&item.vis) => {
                names(&item.tree, &mut found);
                continue;
            }
            Item::Mod(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                assert_eq!(
                    item.ident, "text",
                    "a public module that this test does not read"
                );
                continue;
            }
            Item::Fn(item) => (&item.vis, &item.sig.ident),
            Item::Struct(item) => (&item.vis, &item.ident),
            Item::Enum(item) => (&item.vis, &item.ident),
            _ => continue,
        };
        if is_public(visibility) {
            found.insert(ident.to_string());
        }
    }
    found
}

/// Each name with its outline and its implementations, as Rust.
fn listing(names: &BTreeSet<String>, sources: &Sources) -> String {
    let mut text = String::new();
    for name in names {
        let item = sources.named(name);
        let is_type = matches!(item, Item::Struct(_) | Item::Enum(_));
        let mut implementations: Vec<String> = Vec::new();
        if is_type {
            let all = sources.implementations(name);
            implementations.extend(all.map(|item| rendered([item])));
            implementations.sort();
        }
        text += &rendered([outline(item)]);
        text += &implementations.concat();
        text.push('\n');
    }
    text
}

fn rendered<const N: usize>(items: [Item; N]) -> String {
    let mut file: syn::File = syn::parse_quote!();
    file.items = items.into();
    prettyplease::unparse(&file)
}

#[test]
fn what_the_library_offers_is_what_is_written_down() {
    let sources = Sources::read(&root());
    let front = public_names(&root().join("lib.rs"));
    let text = public_names(&root().join("text.rs"));
    let modules = BTreeMap::from([("autocvd", &front), ("autocvd::text", &text)]);
    let sections = modules.iter().map(|(module, names)| {
        let count = names.len();
        format!("// {module}: {count} names\n\n{}", listing(names, &sources))
    });
    let found = sections.collect::<String>();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/public-api.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, &found).expect("a directory of sources");
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    let pairs = known.lines().zip(found.lines());
    let differing = pairs.zip(1..).find(|((known, found), _)| known != found);
    assert!(
        known == found,
        "the library offers something else than {} says, first where the line and the number are \
         {differing:?}; UPDATE_SNAPSHOTS=1 accepts it",
        path.display()
    );
}
