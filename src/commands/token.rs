//! `token`: bootstrap tokens, made, listed and deleted.

use super::{Setting, Verdict, cluster_of};
use crate::cli::{self, CreateToken, Output};
use crate::core::diagnosis::TokenState;
use crate::core::error::{Error, Result};
use crate::core::spec::Span;
use crate::rooms::cluster::token::{Terms, Token, check_group};
use crate::ui;

pub async fn run(command: &cli::Token, setting: &Setting) -> Result<Verdict> {
    match command {
        cli::Token::Generate => ui::print(&format!("{}\n", Token::generate()?.reveal()))?,
        cli::Token::Create(args) => create(args, setting).await?,
        cli::Token::List {
            cluster,
            show_secrets,
        } => {
            let tokens = cluster_of(cluster, setting)
                .await?
                .list_tokens(*show_secrets)
                .await?;
            if setting.output != Output::Text {
                ui::print_data(&tokens, setting.output)?;
            } else {
                let mut table = vec![
                    ["TOKEN", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"]
                        .map(str::to_owned),
                ];
                table.extend(tokens.into_iter().map(|token| {
                    let secret = token.secret.unwrap_or_else(|| "<hidden>".to_owned());
                    [
                        format!("{}.{secret}", token.id),
                        token.expiration.unwrap_or_else(|| "never".into()),
                        token.usages.join(","),
                        token.description,
                        token.groups.join(","),
                    ]
                }));
                ui::print(&ui::table(&table))?;
            }
        }
        cli::Token::Delete { cluster, tokens } => {
            let ids = tokens
                .iter()
                .map(|token| Token::id_of(token))
                .collect::<Result<Vec<_>>>()?;
            let cluster = cluster_of(cluster, setting).await?;
            for id in ids {
                let found = cluster.delete_token(&id).await?;
                ui::print(&if found {
                    format!("token {id} deleted\n")
                } else {
                    format!("there was no token {id}\n")
                })?;
            }
        }
    }
    Ok(Verdict::Done)
}

async fn create(args: &CreateToken, setting: &Setting) -> Result<()> {
    let token = args
        .token
        .as_deref()
        .map_or_else(Token::generate, Token::parse)?;
    let terms = terms(args)?;
    if args.dry_run {
        let format = if setting.output == Output::Text {
            Output::Yaml
        } else {
            setting.output
        };
        return ui::print_data(&token.secret(&terms), format);
    }
    let cluster = cluster_of(&args.cluster, setting).await?;
    if cluster.token_state(&token.id).await? != TokenState::Gone {
        return Err(
            Error::unfit(format!("the cluster already has a token {}", token.id)).with_help(
                format!(
                    "nodegraft token delete {}, or let another be generated",
                    token.id
                ),
            ),
        );
    }
    cluster.create_token(&token, &terms).await?;
    ui::print(&format!("{}\n", token.reveal()))
}

fn terms(args: &CreateToken) -> Result<Terms> {
    let usage = |message: String, help: &str| Error::usage(message).with_help(help);
    args.extra_groups
        .iter()
        .try_for_each(|group| check_group(group))?;
    if let Some(unknown) = args
        .usages
        .iter()
        .find(|usage| !["signing", "authentication"].contains(&usage.as_str()))
    {
        return Err(usage(
            format!("`{unknown}` is not a usage of tokens"),
            "say signing, authentication, or both",
        ));
    }
    let life = match args.ttl.as_str() {
        "0" => None,
        ttl => Some(
            ttl.parse::<Span>()
                .map_err(|message| usage(message, "0 means for ever"))?
                .0,
        ),
    };
    Ok(Terms {
        life,
        description: args.description.clone(),
        groups: args.extra_groups.clone(),
        authentication: args.usages.iter().any(|usage| usage == "authentication"),
        signing: args.usages.iter().any(|usage| usage == "signing"),
        node: None,
    })
}
