//! The little of XML that nvidia-smi needs, and the mends that it needs.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, Event};
use std::borrow::Cow;

/// An element with its text and what is directly in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    pub(super) name: String,
    /// The attribute `id`; nvidia-smi writes no other.
    pub(super) id: Option<String>,
    /// The text directly inside it.
    pub(super) text: String,
    pub(super) children: Vec<Element>,
}

impl Element {
    /// The child of that name, unless there are several: then none of them can be trusted.
    pub(super) fn child(&self, name: &str) -> Option<&Element> {
        let mut children = self.children.iter().filter(|child| child.name == name);
        match (children.next(), children.next()) {
            (only, None) => only,
            _ => None,
        }
    }

    pub(super) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Whether `test` holds for an element below this one. What processes call themselves is not
    /// asked.
    pub(super) fn any(&self, test: &dyn Fn(&Element) -> bool) -> bool {
        let children = self
            .children
            .iter()
            .filter(|child| child.name != "processes");
        children
            .into_iter()
            .any(|child| test(child) || child.any(test))
    }
}

/// Deeper than any version nests, and shallow enough to be walked by recursion.
const DEEPEST: usize = 32;
/// Hundreds of elements of each GPU that no rule needs: read, but not kept.
const SKIPPED: &str = "supported_clocks";

/// The error for text that has no such document in it, not even a broken one.
pub(super) const NOT_XML: &str = "its output is not the XML asked for";

/// The document inside `text` whose outermost element has that name.
///
/// # Errors
/// What is wrong, where it is not there, not whole, or holds what nvidia-smi does not write.
pub(super) fn document(text: &str, name: &str) -> Result<Element, String> {
    // What stands before it is the declaration, the document type, and warnings that are not XML.
    let start = text.find(&format!("<{name}")).ok_or(NOT_XML)?;
    let text = escape_process_names(&text[start..]);
    let mut reader = Reader::from_str(&text);
    reader.config_mut().expand_empty_elements = true;
    let mut open: Vec<Element> = Vec::new();
    let root = loop {
        let event = reader
            .read_event()
            .map_err(|error| format!("its XML is damaged: {error}"))?;
        let depth = open.len();
        // What processes call themselves stands in here: a comment that began in one name and ended
        // in another would hide what is between them.
        let among_processes = open.iter().any(|element| element.name == "processes");
        match (event, open.last_mut()) {
            (Event::Start(tag), Some(element)) if element.name == SKIPPED => {
                let end = tag.to_end().into_owned();
                reader
                    .read_to_end(end.name())
                    .map_err(|error| format!("its XML is damaged: {error}"))?;
            }
            (Event::Start(tag), _) if depth < DEEPEST => {
                let id = tag
                    .try_get_attribute("id")
                    .map_err(|error| format!("its XML is damaged: {error}"))?;
                let id = id
                    .map(|id| utf8(&id.value).map(str::to_owned))
                    .transpose()?;
                let name = utf8(tag.name().into_inner())?.to_owned();
                open.push(Element {
                    name,
                    id,
                    ..Element::default()
                });
            }
            (Event::End(_), Some(_)) => {
                let Some(element) = open.pop() else { continue };
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => break element,
                }
            }
            (Event::Text(text), Some(element)) => element.text.push_str(utf8(&text)?),
            (Event::GeneralRef(entity), Some(element)) => resolve(&entity, &mut element.text)?,
            (Event::Eof, _) => return Err("its output ends in the middle".to_owned()),
            // Remarks on what is deprecated, from R610 on.
            (Event::Comment(_), Some(_)) if !among_processes => {}
            // Others would hide what is inside them.
            _ => return Err("its XML holds what nvidia-smi does not write".to_owned()),
        }
    };
    let rest = usize::try_from(reader.buffer_position())
        .ok()
        .and_then(|end| text.get(end..));
    if root.name != name || rest.is_none_or(|rest| rest.contains('<')) {
        return Err("its XML goes on after its end".to_owned());
    }
    Ok(root)
}

/// A part of the document as text: the reader hands out bytes, whatever it was given.
fn utf8(part: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(part).map_err(|error| format!("its XML is damaged: {error}"))
}

/// Appends what an entity stands for.
fn resolve(entity: &BytesRef, text: &mut String) -> Result<(), String> {
    let name = utf8(entity)?;
    let unknown = || format!("its XML is damaged: '&{name};' stands for nothing");
    match entity.resolve_char_ref().map_err(|_| unknown())? {
        Some(char) => text.push(char),
        None => text.push_str(resolve_predefined_entity(name).ok_or_else(unknown)?),
    }
    Ok(())
}

/// The document with the names of processes escaped: nvidia-smi copies them as they are, and a `&`
/// or `<` in the command line of one process would cost the whole document.
///
/// A name ends at the next closing tag, unless the tags that belong to the element around it come
/// first: then the closing tag was damaged, and the text is left for the parser to refuse.
fn escape_process_names(text: &str) -> Cow<'_, str> {
    const OPEN: &str = "<process_name>";
    const CLOSE: &str = "</process_name>";
    let mut mended = String::new();
    // Up to where `text` is copied to `mended`, and up to where it is read.
    let (mut copied, mut at) = (0, 0);
    while let Some(found) = text[at..].find(OPEN) {
        let start = at + found + OPEN.len();
        let Some(length) = text[start..].find(CLOSE) else {
            break;
        };
        let name = &text[start..start + length];
        at = start + length;
        if name.contains(['<', '&'])
            && !["<used_memory>", "process_info>", OPEN]
                .iter()
                .any(|tag| name.contains(tag))
        {
            mended.push_str(&text[copied..start]);
            escape(name, &mut mended);
            copied = at;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    mended.push_str(&text[copied..]);
    Cow::Owned(mended)
}

/// Appends `name` with its special characters escaped, those excepted that are escaped already.
fn escape(name: &str, to: &mut String) {
    for (at, char) in name.char_indices() {
        match char {
            '<' => to.push_str("&lt;"),
            '&' if !["amp;", "lt;", "gt;", "quot;", "apos;"]
                .iter()
                .any(|e| name[at + 1..].starts_with(e)) =>
            {
                to.push_str("&amp;");
            }
            _ => to.push(char),
        }
    }
}
