//! A profile: a directory of templates that turns a bare guest into one that can run a kubelet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::core::error::{Error, Result};
use crate::core::kubelet::Runtime;
use crate::core::nearest::nearest;
use crate::core::shape::Shape;
use crate::core::template::Templates;
use crate::core::yaml;

/// Below `templates/`: a directory for each profile.
const FOLDER: &str = "profiles";

/// `templates/profiles/<name>/profile.yaml`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    #[serde(skip)]
    pub name: String,
    pub description: String,
    pub runtime: Runtime,
    /// The scripts, in order; step `init` is `profiles/<name>/init.sh`.
    pub steps: Vec<String>,
    /// Variables with their defaults. A spec may set these and no others.
    #[serde(default)]
    pub vars: BTreeMap<String, serde_json::Value>,
    /// For a step, the service that reads what it writes. Where that runs, it is started anew before the step is done.
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Of systemd: `containerd`.
    pub unit: String,
    /// Files, and directories with all below them. They need not exist.
    pub reads: Vec<String>,
}

impl Profile {
    /// For machines that are left as they booted.
    pub fn empty() -> Self {
        Self {
            name: "none".into(),
            description: "no steps".into(),
            runtime: Runtime::Containerd,
            steps: Vec::new(),
            vars: BTreeMap::new(),
            services: BTreeMap::new(),
        }
    }

    pub fn load(name: &str, templates: &Templates) -> Result<Self> {
        let path = format!("{FOLDER}/{name}/profile.yaml");
        let Some(text) = templates.text(&path) else {
            let near = nearest(name, names(templates));
            let near = near
                .map(|near| format!("did you mean `{near}`? "))
                .unwrap_or_default();
            return Err(
                Error::refused(format!("there is no profile `{name}`")).with_help(format!(
                    "{near}known profiles: {}; add your own below --templates DIR",
                    names(templates).join(", ")
                )),
            );
        };
        let mut profile: Self = yaml::read_loosely(text).map_err(|mistake| {
            let error = Error::refused(format!("the profile {path}:{mistake}"));
            match mistake.help {
                Some(help) => error.with_help(help),
                None => error,
            }
        })?;
        name.clone_into(&mut profile.name);
        for step in &profile.steps {
            let script = profile.script(step);
            if templates.text(&script).is_none() {
                return Err(Error::refused(format!(
                    "the profile `{name}` lists the step `{step}`, but {script} is missing"
                )));
            }
        }
        for (step, service) in &profile.services {
            profile
                .check(step, service)
                .map_err(|why| Error::refused(format!("{path} has a bad service: {why}")))?;
        }
        Ok(profile)
    }

    fn check(&self, step: &str, service: &Service) -> Result<(), String> {
        if !self.steps.iter().any(|known| known == step) {
            return Err(format!(
                "it has no step `{step}`; its steps are {}",
                self.steps.join(", ")
            ));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "@._-".contains(c);
        if service.unit.is_empty()
            || service.unit.starts_with('-')
            || !service.unit.chars().all(allowed)
        {
            return Err(format!("`{}` is not the name of a unit", service.unit));
        }
        match service
            .reads
            .iter()
            .find(|path| !path.starts_with('/') || path.contains(char::is_control))
        {
            Some(path) => Err(format!("`{path}` is not an absolute path")),
            None if service.reads.is_empty() => Err(format!(
                "`{}` reads nothing: list its files under `reads`",
                service.unit
            )),
            None => Ok(()),
        }
    }

    /// The template of a step.
    pub fn script(&self, step: &str) -> String {
        format!("{FOLDER}/{}/{step}.sh", self.name)
    }

    /// The defaults with a spec's own values over them; unknown names are refused.
    pub fn vars(
        &self,
        layers: [&BTreeMap<String, serde_json::Value>; 2],
    ) -> Result<BTreeMap<String, serde_json::Value>> {
        let mut vars = self.vars.clone();
        for (key, value) in layers.into_iter().flatten() {
            let Some(default) = self.vars.get(key) else {
                let known: Vec<_> = self.vars.keys().map(String::as_str).collect();
                let near = nearest(key, known.iter().copied());
                let near = near
                    .map(|near| format!("did you mean `{near}`? "))
                    .unwrap_or_default();
                return Err(Error::refused(format!(
                    "the profile `{}` has no variable `{key}`",
                    self.name
                ))
                .with_help(format!("{near}its variables are: {}", known.join(", "))));
            };
            let shape = Shape::of(default);
            if !shape.holds(value) {
                return Err(Error::refused(format!(
                    "`vars.{key}` is not {}: {value}",
                    shape.words()
                ))
                .with_help(format!(
                    "the profile `{}` has as its default: {default}",
                    self.name
                )));
            }
            vars.insert(key.clone(), value.clone());
        }
        Ok(vars)
    }
}

pub fn names(templates: &Templates) -> Vec<&str> {
    templates
        .names()
        .filter_map(|path| {
            path.strip_prefix(FOLDER)?
                .strip_prefix('/')?
                .strip_suffix("/profile.yaml")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(services: &str) -> Result<Profile> {
        let profile = format!("description: d\nruntime: containerd\nsteps: [work]\n{services}");
        let texts = [
            ("profiles/p/profile.yaml".to_owned(), profile),
            ("profiles/p/work.sh".to_owned(), "true\n".to_owned()),
        ];
        Profile::load("p", &Templates::with(texts.into()).unwrap())
    }

    #[test]
    fn yes_and_no_are_booleans_in_a_profile() {
        let profile = load("vars: {swap: no}\n").unwrap();
        let none = BTreeMap::new();
        assert_eq!(
            profile.vars([&none, &none]).unwrap()["swap"],
            serde_json::json!(false)
        );
    }

    #[test]
    fn a_mistake_comes_with_its_remedy() {
        let error = load("serivces: {}\n").unwrap_err();
        assert!(
            error.help().unwrap().contains("did you mean `services`?"),
            "{:?}",
            error.help()
        );
    }

    #[test]
    fn a_service_belongs_to_a_step_and_reads_files() {
        let profile =
            load("services: {work: {unit: containerd, reads: [/etc/containerd/config.toml]}}\n")
                .unwrap();
        assert_eq!(profile.services["work"].unit, "containerd");
        for (services, why) in [
            (
                "services: {other: {unit: a, reads: [/a]}}\n",
                "no step `other`",
            ),
            (
                "services: {work: {unit: 'a b', reads: [/a]}}\n",
                "not the name of a unit",
            ),
            (
                "services: {work: {unit: ../a, reads: [/a]}}\n",
                "not the name of a unit",
            ),
            (
                "services: {work: {unit: a, reads: [etc/a]}}\n",
                "not an absolute path",
            ),
            ("services: {work: {unit: a, reads: []}}\n", "reads nothing"),
        ] {
            let error = load(services).unwrap_err();
            assert!(error.to_string().contains(why), "{services}: {error}");
        }
    }
}
