//! credd and credvend: their configuration, and how they are started.

use anyhow::{Result, bail};

use crate::cluster::Cluster;
use crate::host::Host;

/// Starts the central service on the head.
pub(crate) fn start_credvend(_cluster: &Cluster) -> Result<()> {
    bail!("not written yet")
}

/// Starts a node's daemon.
pub(crate) fn start_credd(_cluster: &Cluster, _node: &Host) -> Result<()> {
    bail!("not written yet")
}
