//! docs/tutorial.md: every command runs in the lab, and prints the lines below it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;

use sockpath_tests::lab::Lab;
use sockpath_tests::programs;

const TUTORIAL: &str = include_str!("../../docs/tutorial.md");

/// A command of the page with the output that it shows, in order.
fn commands() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for block in TUTORIAL.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => found.push((command, Vec::new())),
                (None, Some((_, shown))) => shown.push(line),
                (None, None) => panic!("output without a command: {line}"),
            }
        }
    }
    found
}

/// Words with single spaces between them: columns are as wide as their contents.
fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a line has all parts of what the page shows, in order; `...` is any text.
fn shows(line: &str, shown: &str) -> bool {
    let (line, shown) = (squeezed(line), squeezed(shown));
    let mut rest = line.as_str();
    shown.split("...").map(str::trim).all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[test]
fn commands_of_the_tutorial_print_what_it_shows() {
    let lab = Lab::reserve();
    let commands = commands();
    assert!(commands.len() > 15, "only {} commands in the tutorial", commands.len());
    for (command, shown) in commands {
        // As a user with the plugin on PATH would: kubectl's first argument is the plugin's name.
        let script = format!("kubectl() {{ shift; \"$PLUGIN\" \"$@\"; }}\n{{ {command}; }} 2>&1");
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env("PLUGIN", programs::plugin()).env("SOCKPATH_LAB_PROGRAM", programs::lab());
        let out = bash.env("SOCKPATH_LAB", lab.instance()).env("COLUMNS", "80").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        let mut lines = text.lines();
        for wanted in shown {
            assert!(lines.any(|line| shows(line, wanted)), "$ {command}\ndoes not print, in this place: {wanted}\nbut:\n{text}");
        }
    }
}
