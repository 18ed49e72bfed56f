//! What GitHub does not say before a push: that the workflows are YAML of the right shape, ask for few rights, and run what exists.

use serde_json::Value;

use super::{files, read, root};

fn parsed(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The steps of all jobs, with a name for messages.
fn steps(path: &str, workflow: &Value) -> Vec<(String, Value)> {
    let jobs = workflow["jobs"].as_object().unwrap_or_else(|| panic!("{path} has no jobs"));
    let mut all = Vec::new();
    for (name, job) in jobs {
        assert!(job["runs-on"].is_string(), "{path}: job {name} runs nowhere");
        assert!(job["timeout-minutes"].is_u64(), "{path}: job {name} has no timeout-minutes");
        for needed in job["needs"].as_array().into_iter().flatten().chain(job.get("needs").filter(|n| n.is_string())) {
            assert!(jobs.contains_key(needed.as_str().unwrap()), "{path}: job {name} needs {needed}");
        }
        let of_job = job["steps"].as_array().unwrap_or_else(|| panic!("{path}: job {name} has no steps"));
        all.extend(of_job.iter().enumerate().map(|(i, step)| (format!("{path}: job {name}, step {}", i + 1), step.clone())));
    }
    all
}

/// Targets of the Makefile.
fn targets() -> Vec<String> {
    let makefile = read("Makefile");
    let rules = makefile.lines().filter(|line| !line.starts_with(['\t', '#', '.', ' '])).filter_map(|line| line.split_once(':'));
    rules.map(|(target, _)| target.trim().to_owned()).collect()
}

#[test]
fn workflows_are_well_formed() {
    let workflows = files(".github/workflows", ".yml");
    assert!(workflows.len() >= 2, "{workflows:?}");
    let targets = targets();
    for path in workflows {
        let workflow = parsed(&path);
        assert!(workflow["name"].is_string() && workflow["on"].is_object(), "{path}: no name, or no events");
        assert_eq!(workflow["permissions"], serde_json::json!({"contents": "read"}), "{path}: jobs ask for more themselves");
        for (at, step) in steps(&path, &workflow) {
            match (step["uses"].as_str(), step["run"].as_str()) {
                (Some(uses), None) => {
                    let version = uses.split_once('@').map(|(_, version)| version);
                    assert!(version.is_some_and(|v| !v.is_empty() && v != "main" && v != "master"), "{at}: {uses} has no version");
                }
                (None, Some(run)) => {
                    for target in run.split(['\n', ';', '&']).filter_map(|c| c.trim().strip_prefix("make ")).flat_map(str::split_whitespace)
                    {
                        assert!(target.contains('=') || targets.iter().any(|t| t == target), "{at}: no target {target} in the Makefile");
                    }
                    for script in run.split_whitespace().filter(|w| w.starts_with(".ci/") || w.starts_with("tests/")) {
                        assert!(root().join(script).exists(), "{at}: {script} does not exist");
                    }
                    // Untrusted text (titles, branch names) reaches a script by its environment only.
                    assert!(!run.contains("${{ github.event") && !run.contains("${{ github.head_ref"), "{at}: text of others in a script");
                }
                _ => panic!("{at}: neither uses nor run, or both"),
            }
        }
    }
}

#[test]
fn templates_and_dependabot_are_well_formed() {
    for path in files(".github/ISSUE_TEMPLATE", ".yml") {
        let form = parsed(&path);
        if path.ends_with("config.yml") {
            assert!(form["contact_links"].is_array(), "{path}");
            continue;
        }
        assert!(form["name"].is_string() && form["description"].is_string(), "{path}: no name or description");
        for field in form["body"].as_array().unwrap() {
            let kind = field["type"].as_str().unwrap();
            assert!(["markdown", "textarea", "input", "dropdown", "checkboxes"].contains(&kind), "{path}: {kind}");
            assert!(kind == "markdown" || field["id"].is_string(), "{path}: a {kind} without id");
        }
    }
    let dependabot = parsed(".github/dependabot.yml");
    assert_eq!(dependabot["version"], 2);
    for update in dependabot["updates"].as_array().unwrap() {
        assert!(update["schedule"]["interval"].is_string() && update["directory"].is_string(), "{update}");
    }
}
