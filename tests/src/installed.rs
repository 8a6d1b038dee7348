//! What `make install` puts down is whole: texts lead to others that are there.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two programs in place of the nodes, installed below a directory.
fn install(prefix: &str, stage: &Path) {
    let binaries = tempfile::tempdir().unwrap();
    for node in ["edge-node", "hub-node"] {
        let file = binaries.path().join(node);
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    }
    let made = Command::new("make")
        .arg("install")
        .arg(format!("PREFIX={prefix}"))
        .arg(format!("DESTDIR={}", stage.display()))
        .arg(format!("BIN_DIR={}", binaries.path().display()))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        // of a make that runs the tests
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{told}");
}

/// Files below a directory whose names end so.
fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

/// Where a text's links lead, but for the network and places in the text itself.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1);
    targets
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

#[test]
fn every_link_of_an_installed_text_leads_to_something_installed() {
    let stage = tempfile::tempdir().unwrap();
    for prefix in ["/usr", "/usr/local"] {
        install(prefix, stage.path());
        let root = stage.path().join(prefix.trim_start_matches('/'));
        let texts = files(&root.join("share/doc/kedge"), ".md");
        assert!(texts.len() > 10, "{texts:?}");
        let mut count = 0;
        for text in &texts {
            let written = std::fs::read_to_string(text).unwrap();
            for link in links(&written) {
                count += 1;
                let target = text.with_file_name(link);
                assert!(target.exists(), "{link} in {}", text.display());
            }
        }
        assert!(count > 50, "{count}");
        for unit in files(&root.join("lib/systemd"), ".service") {
            let written = std::fs::read_to_string(&unit).unwrap();
            let named = written
                .lines()
                .find_map(|line| line.strip_prefix("Documentation=file:/"));
            let document = stage.path().join(named.unwrap());
            assert!(document.exists(), "{}", document.display());
        }
    }
}
