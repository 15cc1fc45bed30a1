//! What a profile's variable may be, told by its default: its type, and whether its texts are addresses or networks.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Bool,
    Number,
    Text(Kind),
    List(Kind),
    Anything,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Word,
    /// An IP address.
    Address,
    /// With its prefix length, or empty for none.
    Network,
}

impl Shape {
    pub fn of(default: &Value) -> Self {
        match default {
            Value::Bool(_) => Self::Bool,
            Value::Number(_) => Self::Number,
            Value::String(text) => Self::Text(Kind::of(text)),
            Value::Array(items) => {
                let first = items.first().and_then(Value::as_str);
                Self::List(first.map_or(Kind::Word, Kind::of))
            }
            _ => Self::Anything,
        }
    }

    pub fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Bool => value.is_boolean(),
            Self::Number => value.is_number(),
            Self::Text(kind) => value.as_str().is_some_and(|text| kind.holds(text)),
            Self::List(kind) => value.as_array().is_some_and(|items| {
                items
                    .iter()
                    .all(|item| item.as_str().is_some_and(|text| kind.holds(text)))
            }),
            Self::Anything => true,
        }
    }

    /// As in "is not ...".
    pub fn words(&self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text(Kind::Word) => "a text",
            Self::Text(Kind::Address) => "an IP address",
            Self::Text(Kind::Network) => "a network such as 10.244.0.0/24, or empty",
            Self::List(Kind::Word) => "a list of texts",
            Self::List(Kind::Address) => "a list of IP addresses",
            Self::List(Kind::Network) => "a list of networks",
            Self::Anything => "anything",
        }
    }
}

impl Kind {
    fn of(text: &str) -> Self {
        if text.parse::<IpAddr>().is_ok() {
            Self::Address
        } else if text.parse::<IpNet>().is_ok() {
            Self::Network
        } else {
            Self::Word
        }
    }

    fn holds(self, text: &str) -> bool {
        match self {
            Self::Word => true,
            Self::Address => text.parse::<IpAddr>().is_ok(),
            Self::Network => text.is_empty() || text.parse::<IpNet>().is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_default_says_what_a_value_may_be() {
        for (default, good, bad) in [
            (json!(false), json!(true), json!("yes")),
            (json!(3), json!(4), json!("4")),
            (json!("Etc/UTC"), json!("Asia/Shanghai"), json!(["Etc/UTC"])),
            (json!([]), json!(["a"]), json!("a")),
            (json!([]), json!([]), json!([1])),
            (
                json!(["10.96.0.10"]),
                json!(["fd00::a"]),
                json!("10.96.0.10"),
            ),
            (json!(["10.96.0.10"]), json!([]), json!(["dns"])),
            (json!("10.244.0.0/24"), json!(""), json!("garbage")),
            (
                json!("10.244.0.0/24"),
                json!("fd00::/64"),
                json!("10.244.0.0"),
            ),
        ] {
            let shape = Shape::of(&default);
            assert!(
                shape.holds(&default) && shape.holds(&good),
                "{default}: {good}"
            );
            assert!(!shape.holds(&bad), "{default}: {bad}");
        }
    }
}
