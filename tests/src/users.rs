//! Users of a site, as its configuration keeps them.

use std::fs::File;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use crate::{paths, process};

const LIMIT: Duration = Duration::from_secs(30);

/// What `edge-node credential` makes of a password.
///
/// # Errors
/// When it fails.
pub fn credentials(password: &str) -> Result<Value> {
    let mut input = tempfile::NamedTempFile::new()?;
    writeln!(input, "{password}")?;
    let mut command = Command::new(paths::node("edge-node")?);
    command.arg("credential").stdin(File::open(input.path())?);
    let said = process::run("edge-node credential", command, LIMIT)?;
    let mut made: Table = said.parse().with_context(|| said.clone())?;
    made.remove("credentials").context("no credentials")
}

/// A user with a password and the rest of what stands in its `[[access.user]]`.
///
/// # Errors
/// As [`credentials`].
pub fn with_password(name: &str, password: &str, mut rest: Table) -> Result<Value> {
    rest.insert("name".to_owned(), name.into());
    rest.insert("credentials".to_owned(), credentials(password)?);
    Ok(rest.into())
}
