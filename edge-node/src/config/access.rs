//! `[access]`: users, what proves who they are, and what they may do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use shared::config::{Pattern, Section};
use shared::units::ByteSize;

use crate::access::{Credential, Rules, TokenHash};
use crate::quota::Limits;

/// More than a site has machines.
const MAX_USERS: usize = 10_000;
const MAX_NAME: usize = 128;
const RULE_KEYS: [&str; 8] = [
    "produce",
    "consume",
    "groups",
    "admin",
    "max_connections",
    "producer_byte_rate",
    "consumer_byte_rate",
    "max_topics",
];

/// `[access]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessConfig {
    /// `[access.anonymous]`: what those may do who don't say who they are. `None`: everything when there are
    /// no users, else they are refused.
    pub anonymous: Option<Rules>,
    /// `[[access.user]]`
    pub users: Vec<UserConfig>,
}

/// One `[[access.user]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserConfig {
    /// The user's name, unique.
    pub name: String,
    /// What its password is checked against, for PLAIN and SCRAM; at most one a mechanism.
    pub credentials: Vec<Credential>,
    /// A file with its password, in place of credentials.
    pub password_file: Option<PathBuf>,
    /// Hashes of its bearer tokens.
    pub tokens: Vec<TokenHash>,
    /// The common name of client certificates that stand for it.
    pub common_name: Option<String>,
    /// What it may do.
    pub rules: Rules,
}

impl AccessConfig {
    pub(super) fn read(mut section: Section) -> Self {
        let is_table = section.has("anonymous");
        let anonymous = section.section("anonymous");
        let is_given = is_table || RULE_KEYS.iter().any(|key| anonymous.has(key));
        let anonymous = rules(anonymous);
        let mut sections = section.sections("user");
        if sections.len() > MAX_USERS {
            section.problem("user", format!("more than {MAX_USERS}"));
            sections.truncate(MAX_USERS);
        }
        let mut taken = Taken::default();
        let users = sections.into_iter();
        Self {
            anonymous: is_given.then_some(anonymous),
            users: users
                .filter_map(|user| read_user(user, &mut taken))
                .collect(),
        }
    }
}

/// What only one user may have.
#[derive(Debug, Default)]
struct Taken {
    names: BTreeSet<String>,
    common_names: BTreeSet<String>,
    tokens: BTreeSet<String>,
}

fn read_user(mut section: Section, taken: &mut Taken) -> Option<UserConfig> {
    let name = section.required::<UserName>("name", "\"till-1\"");
    let credentials = section.secrets::<Credential>("credentials");
    let password_file = section
        .has("password_file")
        .then(|| section.path("password_file", ""));
    let tokens = section.secrets::<TokenHash>("tokens");
    let common_name = section.optional::<String>("common_name");
    let mut problem = |key: &str, text: &str| section.problem(key, text);
    if name
        .as_ref()
        .is_some_and(|name| !taken.names.insert(name.0.clone()))
    {
        problem("name", "another user has it");
    }
    if password_file.is_some() && !credentials.is_empty() {
        problem(
            "password_file",
            "there are credentials already; accepted: one of both",
        );
    }
    let mechanisms: Vec<_> = credentials.iter().map(Credential::mechanism).collect();
    if mechanisms
        .iter()
        .enumerate()
        .any(|(at, it)| mechanisms[..at].contains(it))
    {
        problem("credentials", "two of one mechanism; accepted: one of each");
    }
    if let Some(common_name) = &common_name
        && (common_name.is_empty() || !taken.common_names.insert(common_name.clone()))
    {
        problem("common_name", "empty, or another user has it");
    }
    if !tokens
        .iter()
        .all(|token| taken.tokens.insert(token.to_string()))
    {
        problem("tokens", "one of them is another user's");
    }
    let has_proof = !credentials.is_empty()
        || password_file.is_some()
        || !tokens.is_empty()
        || common_name.is_some();
    if !has_proof {
        problem(
            "credentials",
            "the user can't prove who it is; accepted: credentials, password_file, tokens or common_name",
        );
    }
    // read whatever the name is like: its keys are known and may have problems of their own
    let rules = rules(section);
    Some(UserConfig {
        name: name?.0,
        credentials,
        password_file,
        tokens,
        common_name,
        rules,
    })
}

fn rules(mut section: Section) -> Rules {
    Rules {
        produce: section.list("produce", Vec::new()),
        consume: section.list("consume", Vec::new()),
        groups: section.list("groups", vec![Pattern::any()]),
        admin: section.flag("admin", false),
        limits: limits(&mut section),
    }
}

fn limits(section: &mut Section) -> Limits {
    let mut most = |key: &str, least, most| {
        let is_given = section.has(key);
        is_given.then(|| section.number(key, most, least..=most))
    };
    let (max_connections, max_topics) = (
        most("max_connections", 1, 1_000_000),
        most("max_topics", 0, 100_000),
    );
    Limits {
        max_connections,
        max_topics,
        ..byte_rates(section)
    }
}

/// What may be written and read in a second, of a user or of all clients of a listener.
pub(super) fn byte_rates(section: &mut Section) -> Limits {
    let rates = ByteSize::kib(1)..=ByteSize::gib(100);
    let mut rate = |key: &str| section.size_limit(key, None, rates.clone());
    Limits {
        producer_byte_rate: rate("producer_byte_rate"),
        consumer_byte_rate: rate("consumer_byte_rate"),
        ..Limits::default()
    }
}

struct UserName(String);

impl FromStr for UserName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // a comma and an equals sign mean something in SCRAM
        let accepted = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '=' | '"');
        if text.is_empty() || text.len() > MAX_NAME || !text.chars().all(accepted) {
            return Err(format!(
                "not a user name; accepted: 1 to {MAX_NAME} visible ASCII characters but `,`, `=` and `\"`"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
