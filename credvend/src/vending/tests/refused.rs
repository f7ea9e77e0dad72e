//! What `credvend status` says of a site that refuses everybody, and how names of clusters are compared.

use time::Duration;

use super::revoking_subjects::order;
use super::world::*;
use crate::projects::Unassigned;
use crate::refusal::Refusal;
use crate::source::SourceError;
use crate::store::Subject;
use crate::vending::Node;

fn warnings(w: &World) -> String {
    w.vending.warnings().join("\n")
}

#[tokio::test]
async fn a_cluster_whose_jobs_are_all_refused_is_told() {
    let w = World::new();
    for id in [1, 2, 3] {
        w.slurm.run(id, "alice", "unmapped", &["n1"]);
        assert!(!warnings(&w).contains("all refused"), "{id}: {}", warnings(&w));
        w.try_open("n1", id).await.unwrap_err();
    }
    let text = warnings(&w);
    assert!(text.contains("cluster lab: the last jobs") && text.contains("UnknownProject"), "{text}");
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.open(7).await;
    assert!(!warnings(&w).contains("all refused"), "{}", warnings(&w));
    // What is said of the whole cluster needs one job only.
    *w.slurm.unenforced.lock().unwrap() = Some("no slurmdbd".into());
    w.clock.advance(Duration::hours(1));
    w.try_open("n1", 7).await.unwrap_err();
    assert!(warnings(&w).contains("AccountsNotEnforced"), "{}", warnings(&w));
    w.clock.advance(Duration::hours(2));
    assert!(!warnings(&w).contains("AccountsNotEnforced"), "an old one is not told for ever");
}

#[tokio::test]
async fn who_is_refused_at_the_door_is_told_once_a_line() {
    let w = World::new();
    for n in 0..20 {
        w.vending.refused_at_the_door(&Refusal::UnknownCluster(format!("x{n}").parse().unwrap()));
        w.vending.refused_at_the_door(&Refusal::Unauthenticated("another key".into()));
    }
    let text = warnings(&w);
    assert!(text.contains("cluster x0, x1") && !text.contains("x12"), "{text}");
    assert!(text.contains("20 requests of nodes failed authentication") && text.contains("another key"), "{text}");
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.open(7).await;
    assert!(!warnings(&w).contains("failed authentication"));
}

#[tokio::test]
async fn a_node_whose_cluster_has_a_head_hears_so_before_its_first_job() {
    let w = World::new();
    let headed = Node { cluster: "hpc".parse().unwrap(), ..node("n1") };
    assert_eq!(refused(w.vending.may_listen(&headed).await).0, "NotAllowed");
    w.vending.may_listen(&node("n1")).await.unwrap();
}

#[tokio::test]
async fn a_cluster_has_the_configurations_spelling_whoever_names_it() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    assert_eq!(w.vending.spelled(&"LAB".parse().unwrap()).as_str(), "lab");
    assert_eq!(w.vending.spelled(&"Nowhere".parse().unwrap()).as_str(), "Nowhere");
    let job = Subject::Job("Lab".parse().unwrap(), 7.try_into().unwrap());
    let report = w.vending.revoke(order(job)).await.unwrap();
    assert_eq!(report.sessions, [session]);
    assert!(matches!(&report.subject, Subject::Job(cluster, _) if cluster.as_str() == "lab"), "{report:?}");
}

#[tokio::test]
async fn a_project_is_served_on_its_own_clusters_alone() {
    let w = World::with_both(|lab, hpc| hpc.attestor = lab.attestor.clone());
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let there = Node { cluster: "hpc".parse().unwrap(), ..node("n1") };
    let session = w.open(7).await.session;
    let change = |clusters: &[&str], unassigned| {
        let mut map = map();
        if !clusters.is_empty() {
            let own = clusters.iter().map(|name| name.parse().unwrap()).collect();
            map.clusters.insert("genomics".parse().unwrap(), own);
        }
        map.unassigned = unassigned;
        w.projects.replace(map);
    };
    change(&["HPC"], Unassigned::Everywhere);
    let (code, retry, why) = refused(w.try_open("n1", 7).await);
    assert!(code == "ProjectElsewhere" && retry && why.contains("cluster HPC"), "{why}");
    assert_eq!(refused(w.credentials("n1", session).await).0, "ProjectElsewhere", "also of what is open");
    let elsewhere = w.vending.open_for_node(&there, &w.record(7)).await.unwrap();
    assert_ne!(elsewhere.session, session);
    change(&["lab"], Unassigned::Nowhere);
    w.credentials("n1", session).await.unwrap();
    assert_eq!(refused(w.vending.open_for_node(&there, &w.record(7)).await).0, "ProjectElsewhere");
    change(&[], Unassigned::EverywhereStill);
    w.credentials("n1", session).await.unwrap();
    w.vending.look_at_gauges();
    assert!(w.vending.metrics().text().contains("credvend_projects_without_clusters 2"));
    change(&[], Unassigned::Nowhere);
    assert_eq!(refused(w.credentials("n1", session).await).0, "ProjectElsewhere");
}

#[tokio::test]
async fn roles_that_aws_refuses_are_told_until_it_gives_them() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.slurm.run(8, "bob", "climate", &["n1"]);
    let (genomics, climate) = (w.open(7).await.session, w.open(8).await.session);
    let refuses = |why: Option<&str>| {
        *w.sts.error.lock().unwrap() = why.map(|why| SourceError::Refused(why.into()));
    };
    let gauge = |result: &str| {
        w.vending.look_at_gauges();
        let begin = format!("credvend_roles{{result=\"{result}\"}} ");
        let text = w.vending.metrics().text();
        text.lines().find_map(|line| line.strip_prefix(begin.as_str())?.parse::<u32>().ok())
    };
    assert_eq!((gauge("refused"), gauge("ok")), (Some(0), Some(0)));
    refuses(Some("its trust policy does not name credvend"));
    w.credentials("n1", genomics).await.unwrap_err();
    w.credentials("n1", climate).await.unwrap_err();
    let text = warnings(&w);
    assert!(text.contains("every role that jobs asked for") && text.contains("its trust policy"), "{text}");
    assert!(text.contains("default of project genomics") && text.contains("default of project Climate"), "{text}");
    assert_eq!((gauge("refused"), gauge("ok")), (Some(2), Some(0)));
    refuses(None);
    w.clock.advance(Duration::minutes(1));
    w.credentials("n1", climate).await.unwrap();
    let text = warnings(&w);
    assert!(text.contains("1 of 2 roles") && !text.contains("Climate"), "{text}");
    assert_eq!((gauge("refused"), gauge("ok")), (Some(1), Some(1)));
    w.clock.advance(Duration::hours(1));
    assert!(!warnings(&w).contains("refused"), "an old answer is not shown for ever: {}", warnings(&w));
    assert_eq!((gauge("refused"), gauge("ok")), (Some(0), Some(0)));
}
