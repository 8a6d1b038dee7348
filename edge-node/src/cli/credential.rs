//! `edge-node credential`: what the configuration keeps in place of passwords and tokens.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::{Context as _, ensure};
use clap::Args;
use shared::cli::{Outcome, print};

use crate::access::{Credential, MAX_PASSWORD, Mechanism, TokenHash};
use crate::base64;

/// What to make.
#[derive(Debug, Args)]
pub(super) struct CredentialArgs {
    /// A new bearer token and its hash, in place of a password's credentials
    #[arg(long)]
    token: bool,
}

pub(super) fn run(args: &CredentialArgs) -> anyhow::Result<Outcome> {
    if args.token {
        let token = base64::encode(&rand::random::<[u8; 33]>());
        let token = token.replace('+', "-").replace('/', "_");
        let hash = TokenHash::of(&token);
        print(format_args!(
            "token, for the client: {token}\ntokens = [\"{hash}\"]\n"
        ))?;
        return Ok(Outcome::Fine);
    }
    let password = password()?;
    let made = Mechanism::ALL.map(|mechanism| {
        let salt = rand::random::<[u8; 16]>();
        Credential::make(mechanism, password.as_bytes(), &salt).to_string()
    });
    let quoted = made.map(|credential| format!("    \"{credential}\",\n"));
    print(format_args!("credentials = [\n{}]\n", quoted.concat()))?;
    Ok(Outcome::Fine)
}

fn password() -> anyhow::Result<String> {
    let input = std::io::stdin().lock();
    if input.is_terminal() {
        eprintln!("Password (shown as you type), then Enter:");
    }
    let mut line = String::new();
    let mut limited = std::io::Read::take(input, MAX_PASSWORD as u64 + 2);
    limited.read_line(&mut line).context("read the password")?;
    let password = line.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "no password on standard input");
    ensure!(
        password.len() <= MAX_PASSWORD,
        "the password has more than {MAX_PASSWORD} bytes"
    );
    Ok(password.to_owned())
}
