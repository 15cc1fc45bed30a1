//! What a Node bears against what it should bear: labels and taints. What we gave it once and the spec no longer has goes;
//! what others gave it stays. Pure.

use std::collections::BTreeMap;

use super::node::Node;
use crate::core::difference::Difference;
use crate::core::taint::Taint;

impl Node {
    /// In what its labels and taints differ from what they should be.
    pub fn differences(
        &self,
        labels: &BTreeMap<String, String>,
        taints: &[Taint],
    ) -> Vec<Difference> {
        let mut found = Vec::new();
        for (key, wanted) in labels {
            let is = self.labels.get(key);
            if is != Some(wanted) {
                found.push(Difference {
                    key: format!("labels.{key}"),
                    is: is.cloned(),
                    wanted: Some(wanted.clone()),
                });
            }
        }
        for (key, value) in self.labels_to_drop(labels) {
            found.push(Difference {
                key: format!("labels.{key}"),
                is: Some(value.clone()),
                wanted: None,
            });
        }
        for wanted in taints {
            let is = self.taints.iter().find(|taint| taint.is_same(wanted));
            if is != Some(wanted) {
                found.push(Difference {
                    key: format!("taints.{wanted}"),
                    is: is.map(ToString::to_string),
                    wanted: Some(wanted.to_string()),
                });
            }
        }
        for taint in self.taints_to_drop(taints) {
            found.push(Difference {
                key: format!("taints.{taint}"),
                is: Some(taint.to_string()),
                wanted: None,
            });
        }
        found
    }

    /// Labels we gave it, unchanged since, and not wanted any more.
    pub(super) fn labels_to_drop<'a>(
        &'a self,
        wanted: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = (&'a String, &'a String)> {
        self.applied_labels.iter().filter(|(key, value)| {
            !wanted.contains_key(*key) && self.labels.get(*key) == Some(*value)
        })
    }

    /// Taints we gave it, unchanged since, and not wanted any more.
    pub(super) fn taints_to_drop<'a>(
        &'a self,
        wanted: &'a [Taint],
    ) -> impl Iterator<Item = &'a Taint> {
        self.applied_taints.iter().filter(|ours| {
            !wanted.iter().any(|taint| taint.is_same(ours)) && self.taints.contains(ours)
        })
    }
}

/// Labels as an annotation keeps them: `disk=ssd,tier=gold`. Neither keys nor values have commas in them.
pub(super) fn write_labels(labels: &BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

pub(super) fn read_labels(text: &str) -> BTreeMap<String, String> {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Taints as an annotation keeps them: `gpu=true:NoSchedule,dedicated:NoExecute`.
pub(super) fn write_taints(taints: &[Taint]) -> String {
    let mut taints = taints.to_vec();
    taints.sort();
    taints
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

pub(super) fn read_taints(text: &str) -> Vec<Taint> {
    text.split(',')
        .filter_map(|taint| taint.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        read_labels(text)
    }

    fn node(has: &str, applied: &str, taints: &str, applied_taints: &str) -> Node {
        Node {
            labels: labels(has),
            applied_labels: labels(applied),
            taints: read_taints(taints),
            applied_taints: read_taints(applied_taints),
            ..Node::default()
        }
    }

    #[test]
    fn labels_converge_and_those_of_others_stay() {
        // What the Node has, what we last applied, what is wanted, and what is said.
        let cases: &[(&str, &str, &str, &[&str])] = &[
            ("disk=ssd", "disk=ssd", "disk=ssd", &[]),
            ("os=linux", "", "", &[]),
            (
                "os=linux",
                "",
                "disk=ssd",
                &["labels.disk is missing, the spec says ssd"],
            ),
            (
                "disk=hdd",
                "disk=hdd",
                "disk=ssd",
                &["labels.disk is hdd, the spec says ssd"],
            ),
            (
                "disk=ssd,os=linux",
                "disk=ssd",
                "",
                &["labels.disk is ssd, the spec no longer has it"],
            ),
            (
                "disk=",
                "disk=",
                "",
                &["labels.disk is '', the spec no longer has it"],
            ),
            // Somebody changed it since: it is theirs now.
            ("disk=nvme", "disk=ssd", "", &[]),
            // Somebody took it away already.
            ("os=linux", "disk=ssd", "", &[]),
        ];
        for (has, applied, wanted, said) in cases {
            let found = node(has, applied, "", "").differences(&labels(wanted), &[]);
            assert_eq!(
                found.iter().map(ToString::to_string).collect::<Vec<_>>(),
                *said,
                "{has} / {applied} / {wanted}"
            );
        }
    }

    #[test]
    fn taints_converge_and_those_of_others_stay() {
        let cases: &[(&str, &str, &str, &[&str])] = &[
            (
                "gpu=true:NoSchedule",
                "gpu=true:NoSchedule",
                "gpu=true:NoSchedule",
                &[],
            ),
            ("node.kubernetes.io/unschedulable:NoSchedule", "", "", &[]),
            (
                "",
                "",
                "gpu:NoSchedule",
                &["taints.gpu:NoSchedule is missing, the spec says gpu:NoSchedule"],
            ),
            (
                "gpu=a:NoSchedule",
                "",
                "gpu=b:NoSchedule",
                &["taints.gpu=b:NoSchedule is gpu=a:NoSchedule, the spec says gpu=b:NoSchedule"],
            ),
            (
                "gpu:NoExecute",
                "",
                "gpu:NoSchedule",
                &["taints.gpu:NoSchedule is missing, the spec says gpu:NoSchedule"],
            ),
            (
                "gpu:NoSchedule,theirs:NoSchedule",
                "gpu:NoSchedule",
                "",
                &["taints.gpu:NoSchedule is gpu:NoSchedule, the spec no longer has it"],
            ),
            ("gpu=theirs:NoSchedule", "gpu=ours:NoSchedule", "", &[]),
        ];
        for (has, applied, wanted, said) in cases {
            let found =
                node("", "", has, applied).differences(&BTreeMap::new(), &read_taints(wanted));
            assert_eq!(
                found.iter().map(ToString::to_string).collect::<Vec<_>>(),
                *said,
                "{has} / {applied} / {wanted}"
            );
        }
    }

    #[test]
    fn what_was_applied_is_kept_as_text() {
        let all = labels("disk=ssd,example.com/empty=,tier=gold");
        assert_eq!(all.len(), 3);
        assert_eq!(read_labels(&write_labels(&all)), all);
        assert_eq!(
            write_taints(&read_taints("gpu=true:NoSchedule,a:NoExecute")),
            "a:NoExecute,gpu=true:NoSchedule"
        );
        assert!(read_labels("").is_empty() && read_taints("").is_empty());
    }
}
