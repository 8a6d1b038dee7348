//! How the central topic is named: `{topic}`, `{site}.{topic}`.

use std::fmt;
use std::str::FromStr;

use shared::ids::{NameError, SiteId, TopicName};

const ACCEPTED: &str = "accepted: letters, digits, `.`, `_`, `-`, {topic} and {site}";

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Site,
    Topic,
}

impl TopicTemplate {
    /// The central topic for a site's topic.
    ///
    /// # Errors
    /// A name that Kafka refuses: too long in nearly all cases.
    pub fn render(&self, site: &SiteId, topic: &TopicName) -> Result<TopicName, NameError> {
        let name: String = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Site => site.as_str(),
                Part::Topic => topic.as_str(),
            })
            .collect();
        TopicName::new(&name)
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for TopicTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find('{').unwrap_or(rest.len());
            let (plain, tail) = rest.split_at(end);
            if !plain.is_empty() {
                TopicName::new(&format!("x{plain}"))
                    .map_err(|_| format!("not a topic template; {ACCEPTED}"))?;
                parts.push(Part::Text(plain.to_owned()));
            }
            rest = if let Some(tail) = tail.strip_prefix("{site}") {
                parts.push(Part::Site);
                tail
            } else if let Some(tail) = tail.strip_prefix("{topic}") {
                parts.push(Part::Topic);
                tail
            } else if tail.is_empty() {
                tail
            } else {
                return Err(format!("not a topic template; {ACCEPTED}"));
            };
        }
        if parts.is_empty() {
            return Err(format!("empty; {ACCEPTED}"));
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
        })
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_render() {
        let (site, topic) = (
            SiteId::new("shop-1").unwrap(),
            TopicName::new("sales").unwrap(),
        );
        for (template, name) in [
            ("{topic}", "sales"),
            ("{site}.{topic}", "shop-1.sales"),
            ("edge.{topic}_{site}", "edge.sales_shop-1"),
            ("all", "all"),
        ] {
            let template: TopicTemplate = template.parse().unwrap();
            assert_eq!(template.render(&site, &topic).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_bad_template_says_what_is_accepted() {
        for bad in ["", "{host}", "a b", "{topic", "a/{topic}"] {
            let error = bad.parse::<TopicTemplate>().unwrap_err();
            assert!(error.contains("{topic} and {site}"), "{bad}: {error}");
        }
    }
}
