//! The modules of a crate and imports between them, read from its sources: files, `use` declarations and paths in code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module by its path from the crate's root, which is empty.
pub type Module = Vec<String>;

/// The modules of a crate by what each imports.
#[derive(Debug, Default)]
pub struct Graph(pub BTreeMap<Module, BTreeSet<Module>>);

impl Graph {
    /// Reads the sources below `src`, without tests and other programs than `main.rs`.
    pub fn of(src: &Path) -> Self {
        let mut files = Vec::new();
        sources(src, &mut Vec::new(), &mut files);
        let all: BTreeSet<Module> = files.iter().map(|(module, _)| module.clone()).collect();
        Self(files.iter().map(|(module, text)| (module.clone(), imports(&all, module, &code(text)))).collect())
    }

    /// Circles: the largest sets of modules that reach each other, as `a::b` (the root is `lib`), in order.
    pub fn circles(&self) -> BTreeSet<BTreeSet<String>> {
        let reached: BTreeMap<&Module, BTreeSet<&Module>> = self.0.keys().map(|m| (m, self.reached_from(m))).collect();
        let with = |m: &Module| self.0.keys().filter(|o| reached[m].contains(o) && reached[o].contains(m)).map(name).collect();
        self.0.keys().filter(|m| reached[m].contains(m)).map(with).collect()
    }

    fn reached_from<'g>(&'g self, start: &'g Module) -> BTreeSet<&'g Module> {
        let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(module) = next.pop() {
            next.extend(self.0.get(module).into_iter().flatten().filter(|m| reached.insert(*m)));
        }
        reached
    }
}

fn name(module: &Module) -> String {
    if module.is_empty() { "lib".to_owned() } else { module.join("::") }
}

fn sources(dir: &Path, at: &mut Module, found: &mut Vec<(Module, String)>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
        let (path, file) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && file != "bin" {
            at.push(file);
            sources(&path, at, found);
            at.pop();
        } else if let Some(stem) = file.strip_suffix(".rs").filter(|s| !s.ends_with("tests")) {
            let own = (!(stem == "mod" || at.is_empty() && stem == "lib")).then(|| stem.to_owned());
            found.push((at.iter().cloned().chain(own).collect(), fs::read_to_string(&path).expect("a source is text")));
        }
    }
}

/// A source without comments and without the tests at its end.
fn code(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|l| l[0].trim() == "#[cfg(test)]" && l[1].trim_start_matches("pub ").starts_with("mod ") && l[1].ends_with('{'));
    let code = lines[..tests.unwrap_or(lines.len())].iter().map(|l| l.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

fn imports(all: &BTreeSet<Module>, module: &Module, code: &str) -> BTreeSet<Module> {
    let mut paths = Vec::new();
    let mut rest = String::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let begins = line.trim_start();
        let begins =
            begins.strip_prefix("pub ").or(begins.strip_prefix("pub(crate) ")).or(begins.strip_prefix("pub(super) ")).unwrap_or(begins);
        if let Some(first) = begins.strip_prefix("use ") {
            let mut tree = first.to_owned();
            while !tree.contains(';') {
                tree.push_str(lines.next().expect("a use declaration ends"));
            }
            expand("", tree.split(';').next().unwrap_or_default(), &mut paths);
        } else {
            rest.push_str(line);
            rest.push('\n');
        }
    }
    // A visibility names no module that is used.
    let rest = rest.replace("pub(in crate", "pub(");
    let words = rest.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    paths.extend(words.filter(|w| w.contains("::")).map(str::to_owned));
    paths.iter().filter_map(|path| target(all, module, path)).filter(|m| m != module).collect()
}

/// All paths of a use tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(before: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((prefix, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        if !path.is_empty() {
            paths.push(format!("{before}{path}"));
        }
        return;
    };
    let before = format!("{before}{}", prefix.trim());
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&before, &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(&before, &inner[start..], paths);
}

/// The module of this crate that a path leads to, or the one that has what it names.
fn target(all: &BTreeSet<Module>, module: &Module, path: &str) -> Option<Module> {
    let mut segments = path.split("::").peekable();
    let mut at = match *segments.peek()? {
        "crate" => Vec::new(),
        "self" | "super" => module.clone(),
        child if all.contains(&[module.clone(), vec![child.to_owned()]].concat()) => module.clone(),
        _ => return None,
    };
    while let Some(first) = segments.next_if(|s| ["crate", "self", "super"].contains(s)) {
        if first == "super" {
            at.pop();
        }
    }
    for segment in segments {
        at.push(segment.to_owned());
        if !all.contains(&at) {
            at.pop();
            break;
        }
    }
    all.contains(&at).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str) -> Module {
        path.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn imports_are_found_where_they_are_written() {
        let all: BTreeSet<Module> = ["", "a", "a::b", "a::c", "d", "e"].map(module).into();
        let text = "use super::{c::{self, Thing as Other}, Item};\npub(crate) use crate::d::{\n    E,\n};\nfn f() { crate::a::c::g(); std::mem::drop(1) }\npub(in crate::e) fn h() {}";
        assert_eq!(imports(&all, &module("a::b"), text), ["a", "a::c", "d"].map(module).into());
        assert_eq!(imports(&all, &module("a"), "fn f() { b::g(); c2::h() }"), [module("a::b")].into());
        assert_eq!(code("a(); // crate::d\n#[cfg(test)]\nmod tests {\nuse crate::d;\n}"), "a(); ");
    }

    #[test]
    fn circles_are_found() {
        let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"), ("e", "f"), ("f", "e")];
        let mut graph = Graph::default();
        for (from, to) in edges {
            graph.0.entry(module(from)).or_default().insert(module(to));
        }
        let circle = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(graph.circles(), [circle(&["a", "b", "c"]), circle(&["e", "f"])].into());
    }
}
