//! The benchmark believes nobody: a writer that acknowledges too early is found out.
//!
//! Part of `./test cluster`. It needs a program with the feature `broken-durability`; the ordinary one has no way to
//! break its promise.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a tiny benchmark of the orders workload; its report goes to `out`.
fn bench(out: &Path, broken: bool) -> (Output, serde_json::Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_borealis"));
    command
        .args([
            "bench",
            "--quick",
            "--only",
            "mixed",
            "--rounds",
            "1",
            "--seconds",
            "2",
            "--scale",
            "1",
            "--out",
        ])
        .arg(out);
    command.env_remove("BOREALIS_BREAK_DURABILITY");
    if broken {
        command.env("BOREALIS_BREAK_DURABILITY", "acknowledge-at-one-of-six");
    }
    let output = command.output().expect("the program runs");
    let text = std::fs::read(out.join("bench.json")).unwrap_or_else(|error| {
        panic!("no bench.json ({error}):\n{}", String::from_utf8_lossy(&output.stderr))
    });
    (output, serde_json::from_slice(&text).expect("bench.json is JSON"))
}

#[test]
fn a_run_with_durability_intact_is_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, json) = bench(folder.path(), false);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(json["valid"], true, "{said}");
    let checks = json["durability"].as_array().expect("a list");
    assert_eq!(checks.len(), 1, "{said}");
    assert!(checks[0]["acknowledged"].as_u64() > Some(0), "{checks:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("INVALID"));
}

#[test]
fn a_run_that_acknowledges_at_one_of_six_is_marked_invalid() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, json) = bench(folder.path(), true);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(json["valid"], false, "{said}");
    let lost = json["durability"][0]["lost"].as_str().unwrap_or_default();
    assert!(lost.contains("acknowledged commits are gone"), "the loss is named: {lost}\n{said}");
    let measurements = json["measurements"].as_array().expect("a list");
    for measurement in measurements {
        let marked = measurement["invalid"].is_string();
        assert_eq!(marked, measurement["system"] == "borealis", "{measurement}");
    }
    assert!(String::from_utf8_lossy(&output.stdout).contains("INVALID"), "the table says so");
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("the page");
    assert!(page.contains("INVALID") && page.contains("acknowledged commits are gone"));
}
