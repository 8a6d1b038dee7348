//! `[policy]` and `[[uplink.path]]`: what the link may be used for, at the site and on each path.

use std::collections::BTreeSet;
use std::net::IpAddr;

use shared::config::Section;
use shared::policy::{Zone, from_section};

use super::{Bind, PathConfig, PolicyConfig};
use crate::uplink::FromHub;

const MAX_PATHS: usize = 16;
/// What Linux allows for a name.
const INTERFACE_LEN: usize = 15;
const NAME_LEN: usize = 32;

/// Reads `[policy]`.
pub(super) fn site(mut section: Section) -> PolicyConfig {
    let words = [
        ("tighten", FromHub::Tighten),
        ("replace", FromHub::Replace),
        ("ignore", FromHub::Ignore),
    ];
    PolicyConfig {
        from_hub: section.choice("from_hub", FromHub::Tighten, &words),
        policy: from_section(&mut section, &Zone::utc()),
    }
}

/// Reads `[[uplink.path]]`.
pub(super) fn paths(section: &mut Section, zone: &Zone) -> Vec<PathConfig> {
    let sections = section.sections("path");
    if sections.len() > MAX_PATHS {
        section.problem("path", format!("more than {MAX_PATHS}"));
    }
    let mut names = BTreeSet::new();
    let mut paths = Vec::new();
    for mut path in sections {
        let name = path.required::<PathName>("name", "\"lte\"");
        let bind = bind(&mut path);
        let policy = from_section(&mut path, zone);
        let Some(PathName(name)) = name else {
            continue;
        };
        if !names.insert(name.clone()) {
            path.problem("name", format!("another path is named `{name}`"));
        }
        paths.push(PathConfig { name, bind, policy });
    }
    paths
}

fn bind(section: &mut Section) -> Bind {
    let local = section.optional::<LocalAddress>("local");
    let interface = section.optional::<Interface>("interface");
    match (local, interface) {
        (Some(_), Some(_)) => {
            section.problem("interface", "`local` is given, too; accepted: one of them");
            Bind::Any
        }
        (Some(LocalAddress(address)), None) => Bind::Local(address),
        (None, Some(Interface(name))) => Bind::Interface(name),
        (None, None) => Bind::Any,
    }
}

/// A name of a few plain characters: it is a label of metrics.
struct PathName(String);

impl std::str::FromStr for PathName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_fine = !text.is_empty() && text.len() <= NAME_LEN && text.chars().all(is_plain);
        is_fine.then(|| Self(text.to_owned())).ok_or_else(|| {
            format!("not a name; accepted: up to {NAME_LEN} letters, digits, `-` and `_`")
        })
    }
}

struct LocalAddress(IpAddr);

impl std::str::FromStr for LocalAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().ok();
        let address =
            address.filter(|address| !address.is_unspecified() && !address.is_multicast());
        address
            .map(Self)
            .ok_or_else(|| "not an address of this machine; for example \"192.0.2.5\"".to_owned())
    }
}

struct Interface(String);

impl std::str::FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        let is_fine = !text.is_empty() && text.len() <= INTERFACE_LEN && text.chars().all(is_plain);
        is_fine
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| "not the name of an interface; for example \"wwan0\"".to_owned())
    }
}
