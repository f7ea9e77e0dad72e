//! `credvend pin`: what the nodes need to know about the server's certificate.

use credd_protocol::ClusterName;

use crate::config::{Attest, Config};
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
            "clusters": clusters(config),
        }));
    }
    println!("{}", for_nodes(config, &fingerprint));
    if config.clusters.iter().any(|c| c.attest == Attest::Slurm && c.node_address_check.is_none()) {
        println!(
            "\nFor credvend.toml, in each [[cluster]], once `credvend status` lists no node that it would refuse:\n\
             node-address-check = \"require\""
        );
    }
    Ok(())
}

/// The pin, and the lines for credd.toml.
pub fn for_nodes(config: &Config, fingerprint: &str) -> String {
    let cluster = match &clusters(config)[..] {
        [] => String::new(),
        [one] => format!("cluster = \"{one}\"\n"),
        [one, others @ ..] => {
            let others: Vec<String> = others.iter().map(|name| format!("\"{name}\"")).collect();
            format!("cluster = \"{one}\"    # on the others' nodes: {}\n", others.join(", "))
        }
    };
    format!(
        "sha256:{fingerprint}\n\nFor credd.toml on the nodes:\n{cluster}[credvend]\nurl = \"{}\"\npin = \"sha256:{fingerprint}\"",
        config.public_url
    )
}

/// The clusters whose nodes ask here, as Slurm spells them.
fn clusters(config: &Config) -> Vec<ClusterName> {
    let nodes = config.clusters.iter().filter(|cluster| cluster.attest == Attest::Slurm);
    nodes.map(|cluster| cluster.name.as_slurm_spells_it()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_for_a_node_name_its_cluster() {
        let lines = |clusters: &[(&str, &str)]| {
            let text: String = clusters
                .iter()
                .map(|(name, attest)| format!("[[cluster]]\nname = \"{name}\"\nattest = \"{attest}\"\n"))
                .collect();
            let config = Config::parse(&format!("public-url = \"https://h:8443\"\n{text}")).unwrap();
            for_nodes(&config, "ab")
        };
        let one = lines(&[("MyLab", "slurm"), ("old", "head")]);
        assert!(
            one.ends_with("cluster = \"mylab\"\n[credvend]\nurl = \"https://h:8443\"\npin = \"sha256:ab\""),
            "{one}"
        );
        let several = lines(&[("lab", "slurm"), ("hpc", "slurm")]);
        assert!(several.contains("cluster = \"lab\"    # on the others' nodes: \"hpc\"\n[credvend]"), "{several}");
        assert!(!lines(&[("old", "head")]).contains("cluster ="));
    }
}
