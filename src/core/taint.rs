//! Taints as Kubernetes has them: `key[=value]:Effect`. Pure. On a Node a taint is known by key and effect; its value is
//! what it says.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::core::label;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    pub key: String,
    /// Often empty.
    pub value: String,
    pub effect: Effect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl Effect {
    pub const ALL: [Self; 3] = [Self::NoSchedule, Self::PreferNoSchedule, Self::NoExecute];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effect| effect.as_str() == text)
    }
}

impl Taint {
    /// Whether a Node can have only one of the two.
    pub fn is_same(&self, other: &Self) -> bool {
        self.key == other.key && self.effect == other.effect
    }
}

impl FromStr for Taint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (left, effect) = text.rsplit_once(':').ok_or("it has no effect")?;
        let effect = Effect::parse(effect)
            .ok_or_else(|| format!("`{effect}` is not an effect of taints"))?;
        let (key, value) = left.split_once('=').unwrap_or((left, ""));
        label::check_key(key)?;
        label::check_value(value)?;
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
            effect,
        })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equals = if self.value.is_empty() { "" } else { "=" };
        write!(
            f,
            "{}{equals}{}:{}",
            self.key,
            self.value,
            self.effect.as_str()
        )
    }
}

impl Serialize for Taint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_written_as_kubectl_writes_them() {
        let taint = |key: &str, value: &str, effect| Taint {
            key: key.into(),
            value: value.into(),
            effect,
        };
        let cases = [
            (
                "gpu=true:NoSchedule",
                taint("gpu", "true", Effect::NoSchedule),
            ),
            ("gpu:NoExecute", taint("gpu", "", Effect::NoExecute)),
            (
                "example.com/gpu=a.b:PreferNoSchedule",
                taint("example.com/gpu", "a.b", Effect::PreferNoSchedule),
            ),
        ];
        for (text, taint) in cases {
            assert_eq!(text.parse(), Ok(taint.clone()), "{text}");
            assert_eq!(taint.to_string(), text);
        }
        assert_eq!(
            "gpu=:NoSchedule".parse::<Taint>().unwrap().to_string(),
            "gpu:NoSchedule"
        );
        for bad in [
            "",
            "gpu",
            "gpu=true",
            "gpu:",
            "gpu:noschedule",
            ":NoSchedule",
            "=x:NoSchedule",
            "a b:NoSchedule",
            "a=b=c:NoSchedule",
            "a:b:NoSchedule",
        ] {
            assert!(bad.parse::<Taint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_has_one_taint_of_a_key_and_an_effect() {
        let taint = |text: &str| text.parse::<Taint>().unwrap();
        assert!(taint("gpu=a:NoSchedule").is_same(&taint("gpu=b:NoSchedule")));
        assert!(!taint("gpu:NoSchedule").is_same(&taint("gpu:NoExecute")));
    }
}
