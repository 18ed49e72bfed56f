//! Links of the documents, and words.

use std::process::Command;

use super::{files, read, root};

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> Vec<String> {
    let mut code = false;
    let headings = text.lines().filter(|line| {
        code ^= line.starts_with("```");
        !code && line.starts_with('#')
    });
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut pages = files("docs", ".md");
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "REVIEW.md"].map(str::to_owned));
    let mut links = 0;
    for page in pages {
        let text = read(&page);
        let dir = root().join(&page).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|t| !t.contains("://")) {
            links += 1;
            let (file, part) = target.split_once('#').map_or((target, None), |(file, part)| (file, Some(part)));
            let path = if file.is_empty() { root().join(&page) } else { dir.join(file) };
            assert!(path.exists(), "{page} links to {target}, which does not exist");
            if let Some(part) = part {
                let there = anchors(&std::fs::read_to_string(path).unwrap());
                assert!(there.iter().any(|a| a == part), "{page} links to {target}; its headings are {there:?}");
            }
        }
    }
    assert!(links > 30, "only {links} links were found");
}

/// `.ci/words`, which needs git and its index.
#[test]
fn no_new_words_to_avoid() {
    if !root().join(".git").exists() {
        println!("skipped: no_new_words_to_avoid: not a git checkout");
        return;
    }
    let out = Command::new(root().join(".ci/words")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
