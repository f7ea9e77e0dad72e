//! `credvend pin`: what the nodes need to know about the server's certificate.

use crate::config::Config;
use crate::server::tls::Files;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// For programs
    #[arg(long)]
    json: bool,
}

pub fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let fingerprint = Files::named(&config.tls, &config.state_dir).fingerprint().map_err(|error| {
        anyhow::anyhow!("{error} (a certificate is made when `credvend serve` starts for the first time)")
    })?;
    if args.json {
        return super::print_json(&serde_json::json!({
            "url": config.public_url,
            "pin": format!("sha256:{fingerprint}"),
        }));
    }
    println!("{}", for_nodes(config, &fingerprint));
    Ok(())
}

/// The pin, and the lines for credd.toml.
pub fn for_nodes(config: &Config, fingerprint: &str) -> String {
    format!(
        "sha256:{fingerprint}\n\nFor credd.toml on the nodes:\n[credvend]\nurl = \"{}\"\npin = \"sha256:{fingerprint}\"",
        config.public_url
    )
}
