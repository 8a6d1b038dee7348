//! The two commands, used as a shell uses them.

use std::io;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use system_tests::paths;

/// `edge-node check | head` ends as `check` alone does, not in a panic.
#[test]
#[ignore = "system test: make test"]
fn a_reader_that_goes_away_is_no_failure() -> Result<()> {
    for node in ["edge-node", "hub-node"] {
        let (reader, writer) = io::pipe()?;
        drop(reader);
        let mut command = Command::new(paths::node(node)?);
        let ended = command
            .args(["check", "--config", "/nonexistent/kedge.toml"])
            .stdout(writer)
            .output()?;
        let code = ended.status.code().context("it was not killed")?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(code == 1 || code == 2, "{node}: {code}, {said}");
        ensure!(!said.contains("panicked"), "{node}: {said}");
    }
    Ok(())
}
