//! `create`: one VM, from flags and, on a terminal, questions for what they leave open. It amounts to a spec of one node
//! and walks the same list as `up`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::image::{PREPARED, active_pool, template_names};
use super::{Setting, Verdict, kubeconfig_or_default, up};
use crate::cli::{self, OnFailure, Output};
use crate::core::error::{Context, Error, Result};
use crate::core::first_boot::is_red_hat;
use crate::core::plan::Plan;
use crate::core::spec::{FirstBoot, Network, Size, Spec, is_node_name};
use crate::rooms::files;
use crate::rooms::libvirt::Host;
use crate::rooms::state::StateDir;
use crate::ui;
use crate::ui::prompt::{Prompt, Question};

pub async fn run(args: &cli::Create, setting: &Setting) -> Result<Verdict> {
    let prompt = Prompt::new(args.yes);
    let template = if args.print_spec && args.template.is_some() {
        args.template.clone().unwrap_or_default()
    } else {
        choose_template(args, &prompt).await?
    };
    let text = spec_text(args, &template, &prompt)?;
    if args.print_spec {
        ui::print(&text)?;
        return Ok(Verdict::Done);
    }
    let spec = Spec::parse(&text, "the spec of these answers")?;
    let plan = Plan::new(&spec, setting.templates()?, &[])?;
    let node = plan.nodes[0].clone();
    let (reader, network) = plan.network_file(&node)?;
    let note = if node.first_boot == FirstBoot::Inject {
        "\n(its first boot finds out which file its system reads, and writes that one)"
    } else {
        ""
    };
    prompt.say(&format!(
        "\nthe guest's network, by {reader}, on the interface with the MAC {}:{note}\n{network}",
        node.mac
    ));
    if !prompt.confirm("Go on with this?", true)? {
        return Err(Error::refused("nothing was made"));
    }
    // Kept, so that `down` and `status` have a spec to go by.
    let state = StateDir::open(&plan.cluster.name)?;
    let file = state.log(&node.name, "spec.yaml")?;
    files::write(&file, &text).doing(format!("writing {}", file.display()))?;
    let key = state.login_key_path(None);
    let verdict = up::run_plan(
        plan,
        &up::Manner::one(if args.undo {
            OnFailure::Undo
        } else {
            OnFailure::Keep
        }),
        &file,
        setting,
    )
    .await?;
    if verdict == Verdict::Done && setting.output == Output::Text {
        ui::print(&format!(
            "ssh -i {} {}@{}\n",
            key.display(),
            node.user,
            node.ip
        ))?;
    }
    Ok(verdict)
}

/// Looks at pool and template first, and says so.
async fn choose_template(args: &cli::Create, prompt: &Prompt) -> Result<String> {
    let host = Host::open(&args.host.uri).await?;
    let pool = active_pool(&host, &args.host.pool).await?;
    let volumes = template_names(&pool);
    let question = Question {
        flag: "--template",
        text: "Template volume",
        given: args.template.as_deref(),
        default: volumes.first().cloned(),
    };
    let known = |name: &str| {
        if volumes.iter().any(|volume| volume == name) {
            Ok(name.to_owned())
        } else {
            Err(format!("the pool has: {}", volumes.join(", ")))
        }
    };
    let template = prompt.ask(&question, known).map_err(|error| {
        if volumes.is_empty() {
            error.with_help("put a qcow2 image into the pool first")
        } else {
            error
        }
    })?;
    prompt.say(&format!(
        "the pool {} is active, {} free, and has the template {template}",
        args.host.pool,
        Size(pool.available >> 30 << 30)
    ));
    Ok(template)
}

/// The spec that the answers amount to.
fn spec_text(args: &cli::Create, template: &str, prompt: &Prompt) -> Result<String> {
    let ask = |flag,
               text,
               given: &Option<String>,
               default: Option<String>,
               read: &dyn Fn(&str) -> Result<String, String>| {
        prompt.ask(
            &Question {
                flag,
                text,
                given: given.as_deref(),
                default,
            },
            read,
        )
    };
    let name = ask("--name", "Name of the VM", &args.name, None, &|text| {
        if is_node_name(text) {
            Ok(text.to_owned())
        } else {
            Err("use lower-case letters, digits, `-` and `.`".into())
        }
    })?;
    let disk = ask(
        "--disk",
        "Disk, in G",
        &args.disk,
        Some("40".into()),
        &|text| size(text, 'G'),
    )?;
    let memory = ask(
        "--memory",
        "Memory, in M",
        &args.memory,
        Some("4096".into()),
        &|text| size(text, 'M'),
    )?;
    let cpus = ask("--cpus", "CPUs", &args.cpus, Some("2".into()), &|text| {
        text.parse::<u32>()
            .ok()
            .filter(|n| *n > 0)
            .map(|n| n.to_string())
            .ok_or_else(|| "a number from 1 on".into())
    })?;
    // A VM may be named after its address.
    let likely = name.parse::<IpAddr>().is_ok().then(|| name.clone());
    let address = ask(
        "--address",
        "Address (with or without /PREFIX)",
        &args.address,
        likely,
        &|text| {
            let bare = text.split('/').next().unwrap_or_default();
            match (
                bare.parse::<IpAddr>(),
                text.contains('/'),
                text.parse::<IpNet>(),
            ) {
                (Ok(_), false, _) | (Ok(_), true, Ok(_)) => Ok(text.to_owned()),
                _ => Err("an address such as 192.168.3.104, or 192.168.3.104/24".into()),
            }
        },
    )?;
    let net: IpNet = if address.contains('/') {
        address
            .parse()
            .map_err(|_| Error::usage("the address does not parse"))?
    } else {
        let mask = ask(
            "--netmask",
            "Netmask",
            &args.netmask,
            Some("255.255.255.0".into()),
            &|text| with_mask(&address, text).map(|_| text.to_owned()),
        )?;
        with_mask(&address, &mask).map_err(Error::usage)?
    };
    let inside = |text: &str| match text.parse::<IpAddr>() {
        Ok(ip) if net.contains(&ip) && ip != net.addr() => Ok(text.to_owned()),
        Ok(_) => Err(format!("it must be another address in {}", net.trunc())),
        Err(_) => Err("an address".to_owned()),
    };
    let gateway = ask(
        "--gateway",
        "Gateway",
        &args.gateway,
        net.hosts().next().map(|first| first.to_string()),
        &inside,
    )?;
    let dns = ask(
        "--dns",
        "DNS server",
        &args.dns,
        Some(gateway.clone()),
        &|text| {
            text.parse::<IpAddr>()
                .map(|_| text.to_owned())
                .map_err(|_| "an address".into())
        },
    )?;
    let network = match (&args.bridge, &args.network) {
        (Some(bridge), _) => Network::Bridge(bridge.clone()),
        (None, Some(network)) => Network::Network(network.clone()),
        (None, None) => Network::Network("default".into()),
    };
    let mut spec = json!({
        "version": 1,
        "cluster": {"name": args.cluster_name, "join": false},
        "host": {"uri": args.host.uri, "pool": args.host.pool, "network": network},
        "nodes": [{
            "name": name, "address": net.to_string(), "template": template, "cpus": cpus.parse::<u32>().unwrap_or(2),
            "memory": memory, "disk": disk, "gateway": gateway, "dns": [dns],
        }],
    });
    if first_boot(args, template) == FirstBoot::Inject {
        spec["nodes"][0]["first_boot"] = json!(FirstBoot::Inject);
    }
    if args.join {
        join(args, &mut spec)?;
    }
    serde_saphyr::to_string(&spec)
        .map_err(|error| Error::bug("writing the spec").because(error.to_string()))
}

/// CentOS images without cloud-init are what this command was made for; one that has it leaves our unit idle.
fn first_boot(args: &cli::Create, template: &str) -> FirstBoot {
    match args.first_boot {
        Some(cli::FirstBoot::Image) => FirstBoot::Image,
        Some(cli::FirstBoot::Inject) => FirstBoot::Inject,
        None if is_red_hat(template) && !template.contains(PREPARED) => FirstBoot::Inject,
        None => FirstBoot::Image,
    }
}

/// What `--join` adds: the cluster, the steps, the kubelet.
fn join(args: &cli::Create, spec: &mut Value) -> Result<()> {
    let needs = |flag: &str| Error::usage(format!("--join needs {flag}"));
    let kubelet = args
        .kubelet
        .as_deref()
        .ok_or_else(|| needs("--kubelet VERSION"))?;
    let profile = args.profile.as_deref().ok_or_else(|| needs("--profile"))?;
    let package = args
        .kubelet_package
        .clone()
        .unwrap_or_else(|| "kubelet".into());
    spec["cluster"] = json!({"name": args.cluster_name, "kubeconfig": kubeconfig_or_default(args.kubeconfig.as_deref())});
    spec["nodes"][0]["profile"] = json!(profile);
    spec["nodes"][0]["kubelet"] = json!({"version": kubelet, "package": package});
    Ok(())
}

/// `40` in the question's own unit, or a size with its unit.
fn size(text: &str, unit: char) -> Result<String, String> {
    let spelled = if text.chars().all(|c| c.is_ascii_digit()) {
        format!("{text}{unit}")
    } else {
        text.to_owned()
    };
    spelled.parse::<Size>().map(|size| size.to_string())
}

fn with_mask(address: &str, mask: &str) -> Result<IpNet, String> {
    let ip: IpAddr = address
        .parse()
        .map_err(|_| format!("{address} is not an address"))?;
    let prefix = match mask.trim_start_matches('/').parse::<u8>() {
        Ok(prefix) => prefix,
        Err(_) => mask
            .parse::<IpAddr>()
            .ok()
            .and_then(|mask| ipnet::ip_mask_to_prefix(mask).ok())
            .ok_or_else(|| format!("`{mask}` is not a netmask"))?,
    };
    IpNet::new(ip, prefix).map_err(|_| format!("`{mask}` is not a netmask"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_the_questions_unit_or_their_own() {
        assert_eq!(size("40", 'G').unwrap(), "40GiB");
        assert_eq!(size("4096", 'M').unwrap(), "4GiB");
        assert_eq!(size("512MiB", 'G').unwrap(), "512MiB");
        assert!(size("forty", 'G').is_err() && size("", 'G').is_err());
    }

    #[test]
    fn masks_come_in_both_forms() {
        assert_eq!(
            with_mask("192.168.3.104", "255.255.255.0")
                .unwrap()
                .to_string(),
            "192.168.3.104/24"
        );
        assert_eq!(
            with_mask("192.168.3.104", "/16").unwrap().to_string(),
            "192.168.3.104/16"
        );
        for bad in ["255.0.255.0", "33", "mask", ""] {
            assert!(with_mask("192.168.3.104", bad).is_err(), "{bad}");
        }
    }
}
