//! A profile: a directory of templates that turns a bare guest into one that can run a kubelet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, Result};
use crate::kubelet::Runtime;
use crate::template::Templates;

/// `templates/<name>/profile.yaml`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    #[serde(skip)]
    pub name: String,
    pub description: String,
    pub runtime: Runtime,
    /// The scripts, in order; step `init` is `<profile>/init.sh`.
    pub steps: Vec<String>,
    /// Variables with their defaults. A spec may set these and no others.
    #[serde(default)]
    pub vars: BTreeMap<String, serde_json::Value>,
}

impl Profile {
    /// For machines that are left as they booted.
    pub fn empty() -> Self {
        Self { name: "none".into(), description: "no steps".into(), runtime: Runtime::Containerd, steps: Vec::new(), vars: BTreeMap::new() }
    }

    pub fn load(name: &str, templates: &Templates) -> Result<Self> {
        let path = format!("{name}/profile.yaml");
        let Some(text) = templates.text(&path) else {
            return Err(Error::new(format!("there is no profile `{name}`"))
                .with_help(format!("known profiles: {}; add your own below --templates DIR", names(templates).join(", ")))
                .with_exit(Exit::Refused));
        };
        let mut profile: Self = serde_saphyr::from_str(text)
            .map_err(|error| Error::new(format!("the profile {path} does not parse")).because(error).with_exit(Exit::Refused))?;
        name.clone_into(&mut profile.name);
        for step in &profile.steps {
            let script = profile.script(step);
            if templates.text(&script).is_none() {
                return Err(
                    Error::new(format!("the profile `{name}` lists the step `{step}`, but {script} is missing")).with_exit(Exit::Refused)
                );
            }
        }
        Ok(profile)
    }

    /// The template of a step.
    pub fn script(&self, step: &str) -> String {
        format!("{}/{step}.sh", self.name)
    }

    /// The defaults with a spec's own values over them; unknown names are refused.
    pub fn vars(&self, layers: [&BTreeMap<String, serde_json::Value>; 2]) -> Result<BTreeMap<String, serde_json::Value>> {
        let mut vars = self.vars.clone();
        for (key, value) in layers.into_iter().flatten() {
            if !self.vars.contains_key(key) {
                let known: Vec<_> = self.vars.keys().map(String::as_str).collect();
                return Err(Error::new(format!("the profile `{}` has no variable `{key}`", self.name))
                    .with_help(format!("its variables are: {}", known.join(", ")))
                    .with_exit(Exit::Refused));
            }
            vars.insert(key.clone(), value.clone());
        }
        Ok(vars)
    }
}

pub fn names(templates: &Templates) -> Vec<&str> {
    templates.names().filter_map(|name| name.strip_suffix("/profile.yaml")).collect()
}
