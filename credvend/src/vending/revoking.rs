//! Ends what a subject has: sessions here, documents on the nodes, and in AWS what was issued.
//!
//! An order is stored before anything is done about it, and everything that is done can be done twice: whoever finds it
//! open, after a crash or a failure, carries it out from its beginning.
//!
//! | file | what |
//! |---|---|
//! | `concerned` | which sessions, and what was issued to them |
//! | `ending` | the sessions' ends |
//! | `telling` | the nodes, and their answers |
//! | `by_pattern` | whom an upstream takes along |
//! | `dying` | what AWS must deny, and who else that hits |
//! | `resuming` | what somebody began and did not bring to an end |
//! | `on_end` | roles whose credentials die with their job |
//! | `report`, `looking_up` | what is said of it, and later |

use std::collections::{BTreeMap, HashMap, HashSet};

use credd_protocol::{ClusterName, SessionId, UserName};
use time::Duration;
use tokio::time::Instant;

use super::blocking::shown;
use super::{Vending, require_active};
use crate::audit::Event;
use crate::deny::policy;
use crate::refusal::Refusal;
use crate::source::Revoked;
use crate::store::{
    Block, Denied, Ended, Issuance, NewsKind, Order, OrderId, Revocation, Session, StoreError, Subject,
};
use credd_protocol::credentials_api_v1::SessionStatus;
use dying::Dying;
use report::RoleReport;
pub use report::{Bystander, NodesReport, RevocationReport, Took, UnheardNode};
pub(super) use resuming::Resuming;
use telling::Holders;

mod by_pattern;
pub(super) mod concerned;
pub(super) mod dying;
mod ending;
mod looking_up;
pub(super) mod on_end;
pub mod report;
mod resuming;
mod telling;

/// The most bytes of an order's `why`.
pub const MAX_WHY: usize = 512;

/// IAM gets so long within an answer; then the answer says that it goes on.
const DENY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(40);

/// So long after its session's end a job's nodes are still asked whether they have dropped what they held.
const EPILOGS: Duration = Duration::minutes(15);

/// An order is left for so long to who was last seen to work at it: after a kill somebody else goes on soon.
const LEFT_ALONE: Duration = Duration::seconds(15);

/// Who works at an order says so this often.
const SAY_SO: std::time::Duration = std::time::Duration::from_secs(4);

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    /// The name to give it; the same name again is the same order.
    pub id: OrderId,
    /// About whom.
    pub subject: Subject,
    /// Only on these clusters.
    pub clusters: Option<Vec<ClusterName>>,
    /// Who orders it.
    pub by: String,
    /// Why.
    pub why: Option<String>,
    /// Deny whole roles.
    pub wide: bool,
    /// Keep the subject out from now on.
    pub block: bool,
}

impl Vending {
    /// Ends all ACTIVE sessions of a subject, tells the nodes, and denies in AWS everything issued to it that still lives,
    /// what ended sessions hold included.
    ///
    /// # Errors
    /// An order that makes no sense; a store that does not take it. What is lacking otherwise is in the report, and
    /// credvend goes on with it.
    pub async fn revoke(&self, ordered: Ordered) -> Result<RevocationReport, Refusal> {
        self.check_order(&ordered)?;
        if let Some(known) = self.parts.store.get_order(ordered.id).await? {
            return Ok(self.told(&known));
        }
        let (order, block) = self.order(ordered);
        if let Some(block) = &block {
            self.block(block.clone()).await?;
        }
        let now = self.now();
        // If it is not to be had somebody else carries the same order out, which does no harm.
        let holder = self.holder("ordered");
        let _ = self.parts.store.lease(&lease_of(order.id), &holder, now, now + LEFT_ALONE).await?;
        self.parts.store.put_order(order.clone()).await?;
        self.parts.audit.note(Event::RevocationOrdered { order: &order });
        tracing::warn!(order = %order.id, by = order.by, subject = shown(&order.subject), why = order.why, "revocation ordered");
        Ok(self.carry_out(order, false, &holder).await)
    }

    /// What [`Vending::revoke`] would do. Nothing changes.
    ///
    /// # Errors
    /// An order that makes no sense; the store.
    pub async fn rehearse(&self, ordered: Ordered) -> Result<RevocationReport, Refusal> {
        self.check_order(&ordered)?;
        let (order, block) = self.order(ordered);
        let sessions = self.concerned(&order, Some(SessionStatus::Active), order.at + concerned::SKEW).await?;
        let issued = self.issued_to(&order, &sessions).await?;
        let earlier = self.ended_earlier(&sessions, &issued).await?;
        let holders = all_holders(&order, &sessions, &earlier, &issued);
        let theirs: HashSet<SessionId> =
            sessions.iter().map(|s| s.id).chain(issued.iter().map(|i| i.session)).collect();
        let mut report = RevocationReport::of(&order).with_sessions(sessions.iter().map(|s| s.id));
        (report.dry_run, report.blocked) = (true, block.is_some());
        report.nodes.concerned = holders.len();
        report.not_denied.extend(dying::beyond_reach(&order, &issued));
        report.upstream_gave = dying::upstream_gave(&issued);
        let living = self.parts.store.list_revocations(self.now()).await?;
        for mut dying in dying::dying(&order, &issued, self.now()) {
            self.align(&mut dying, &theirs).await?;
            let bystanders = self.bystanders(&dying, &theirs).await?;
            let mut role = dying.report(bystanders.into_iter().map(|(bystander, _)| bystander).collect());
            role.why_not = self.denying.lacks(&dying.role).or_else(|| too_much(&dying, &living));
            report.not_denied.extend(role.why_not.clone());
            report.roles.push(role);
        }
        Ok(report)
    }

    fn check_order(&self, ordered: &Ordered) -> Result<(), Refusal> {
        let bad = |why: &str| Err(Refusal::BadRequest(why.to_owned()));
        if ordered.why.as_ref().is_some_and(|why| why.len() > MAX_WHY) {
            return bad(&format!("the reason has at most {MAX_WHY} bytes"));
        }
        let own = match &ordered.subject {
            Subject::Job(cluster, _) | Subject::Node(cluster, _) => Some(cluster),
            Subject::User(_) | Subject::Project(_) | Subject::Role(_) => None,
        };
        for cluster in ordered.clusters.iter().flatten().chain(own) {
            if !self.parts.clusters.contains_key(cluster) {
                return Err(Refusal::UnknownCluster(cluster.clone()));
            }
        }
        if ordered.block && matches!(ordered.subject, Subject::Job(..)) {
            return bad("a job is not blocked: what is revoked of it stays revoked, and a requeue of it is a new run");
        }
        if ordered.block && ordered.clusters.is_some() {
            return bad("a block holds on all clusters; revoke on some of them without it");
        }
        Ok(())
    }

    fn order(&self, ordered: Ordered) -> (Order, Option<Block>) {
        let Ordered { id, subject, clusters, by, why, wide, block } = ordered;
        let (at, subject) = (self.now(), self.spelled_subject(subject));
        let clusters = clusters.map(|clusters| clusters.iter().map(|cluster| self.spelled(cluster)).collect());
        let block = block.then(|| Block { subject: subject.clone(), by: by.clone(), why: why.clone(), at });
        (Order { id, subject, clusters, by, why, wide, at, done: None, report: None }, block)
    }

    /// Who holds an order's lease: a sweep of this process must not take up what a request to it carries out.
    fn holder(&self, by: &str) -> String {
        format!("{}/{by}", self.replica)
    }

    /// Everything that an order asks for; `again` if somebody began with it before. What fails leaves it open.
    async fn carry_out(&self, mut order: Order, again: bool, holder: &str) -> RevocationReport {
        let begun = Instant::now();
        let mut report = RevocationReport::of(&order);
        let lease = lease_of(order.id);
        let done = tokio::select! {
            done = self.all_steps(&order, again, begun, &mut report) => done,
            never = self.keep(&lease, holder) => match never {},
        };
        match done {
            Ok(()) => order.done = Some(self.now()),
            Err(e) => {
                report.unfinished = Some(format!("not everything was done: {e}; credvend goes on with it by itself"));
            }
        }
        order.report = Some(report.to_stored());
        if let Err(e) = self.parts.store.put_order(order.clone()).await {
            report.unfinished.get_or_insert_with(|| format!("what was done could not be noted: {e}; it is done again"));
        }
        if let Err(e) = self.parts.store.release(&lease, holder).await {
            tracing::debug!(order = %order.id, error = %e, "the order's lease ends by itself");
        }
        let denied = report.roles.iter().filter(|role| role.in_force).map(|role| role.denied_total).sum();
        let lacking = report.not_denied.len() + report.nodes.unheard.len() + usize::from(report.unfinished.is_some());
        if order.done.is_some() {
            let sessions = report.sessions_total;
            self.parts.audit.note(Event::RevocationDone { order: &order, sessions, denied, lacking });
        }
        tracing::warn!(
            order = %order.id, by = order.by, subject = shown(&order.subject), sessions = report.sessions_total, denied,
            nodes = report.nodes.concerned, unheard = report.nodes.unheard.len(), not_denied = report.not_denied.join("; "),
            unfinished = report.unfinished, "revocation carried out"
        );
        report
    }

    /// Renews a lease for as long as this is polled. One that is lost costs that somebody else does the same again.
    async fn keep(&self, lease: &str, holder: &str) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(SAY_SO).await;
            let now = self.now();
            if let Err(error) = self.parts.store.lease(lease, holder, now, now + LEFT_ALONE).await {
                tracing::debug!(lease, %error, "the lease is not renewed");
            }
        }
    }

    async fn all_steps(
        &self,
        order: &Order,
        again: bool,
        begun: Instant,
        report: &mut RevocationReport,
    ) -> Result<(), StoreError> {
        // An upstream is asked first, for no end of a session may overtake it, and waits for nothing that is done here.
        let there = async {
            match &order.subject {
                Subject::User(user) => self.parts.source.revoke_user(user).await,
                _ => None,
            }
        };
        let (there, here) = tokio::join!(there, self.steps_here(order, again, begun, report));
        let outlives = here?;
        if let (Some(Ok(Revoked::OfActive)), Subject::User(user)) = (&there, &order.subject) {
            let hit = self.renew_hit_by_pattern(user, Some(order.id)).await?;
            *report = report.clone().with_hit_by_pattern(hit);
        }
        report.not_denied.extend(match there {
            Some(Ok(Revoked::OfActive)) => outlives,
            Some(Err(why)) => Some(why),
            None | Some(Ok(Revoked::Everything)) => None,
        });
        Ok(())
    }

    /// Everything but what an upstream does; returns what lives on where that revokes only what ACTIVE sessions have.
    async fn steps_here(
        &self,
        order: &Order,
        again: bool,
        begun: Instant,
        report: &mut RevocationReport,
    ) -> Result<Option<String>, StoreError> {
        let ms = |at: Instant| u64::try_from((at - begun).as_millis()).ok();
        report.blocked =
            self.parts.store.list_blocks().await?.iter().any(|b| b.subject == order.subject && b.at == order.at);
        let sessions = self.end_concerned(order, again).await?;
        *report = report.clone().with_sessions(sessions.iter().map(|s| s.id));
        report.took.refuse_ms = ms(Instant::now());
        // At once: who has to answer is found out meanwhile.
        let why = reason(order);
        let all_told = self.tell(NewsKind::Invalidated, &sessions, &why, Some(order.id), &Holders::new()).await;
        // Who asks meanwhile how it goes sees this much.
        let so_far = Order { report: Some(report.to_stored()), ..order.clone() };
        let (stored, issued) = tokio::join!(self.parts.store.put_order(so_far), self.issued_to(order, &sessions));
        stored?;
        let issued = issued?;
        let earlier = self.ended_earlier(&sessions, &issued).await?;
        let holders = all_holders(order, &sessions, &earlier, &issued);
        // Whoever answers this has heard what came before it, too.
        let asks = |session: &Session| holders.keys().any(|(cluster, _)| *cluster == session.cluster);
        let again = sessions.iter().filter(|s| !all_told || (telling::is_last(&sessions, s) && asks(s)));
        self.tell(NewsKind::Invalidated, again.chain(&earlier), &why, Some(order.id), &holders).await;
        let theirs: HashSet<SessionId> =
            sessions.iter().map(|s| s.id).chain(issued.iter().map(|i| i.session)).collect();
        let answered = async {
            let nodes = self.answered(order.id, &holders).await;
            (nodes, Instant::now())
        };
        let ((nodes, dropped), roles) = tokio::join!(answered, async { self.deny_all(order, &issued, &theirs).await });
        report.took.drop_ms = (nodes.concerned > 0 && nodes.unheard.is_empty()).then(|| ms(dropped)).flatten();
        report.nodes = nodes;
        let (roles, denied) = roles?;
        report.took.deny_ms = (!roles.is_empty() && roles.iter().all(|r| r.in_force)).then(|| ms(denied)).flatten();
        report.not_denied = roles.iter().filter_map(|role| role.why_not.clone()).collect();
        report.not_denied.extend(dying::beyond_reach(order, &issued));
        report.roles = roles;
        report.upstream_gave = dying::upstream_gave(&issued);
        Ok(dying::outlives(&sessions, &issued))
    }

    /// Has AWS deny what was issued, and gives new credentials to who loses theirs without being meant.
    async fn deny_all(
        &self,
        order: &Order,
        issued: &[Issuance],
        theirs: &HashSet<SessionId>,
    ) -> Result<(Vec<RoleReport>, Instant), StoreError> {
        let mut dying = dying::dying(order, issued, self.now());
        for one in &mut dying {
            self.align(one, theirs).await?;
        }
        self.record_dying(&dying).await?;
        let mut roles = vec![];
        let mut hit: HashMap<SessionId, Session> = HashMap::new();
        for one in &dying {
            // Listed after the entries are stored: who gets something meanwhile either sees them, or is seen here.
            let found = self.bystanders(one, theirs).await?;
            let active = found.iter().filter(|(bystander, _)| bystander.active).filter_map(|(_, s)| s.clone());
            hit.extend(active.map(|session| (session.id, session)));
            roles.push(one.report(found.into_iter().map(|(bystander, _)| bystander).collect()));
        }
        // IAM is not waited for: what they get from now on, no stored entry kills.
        self.renew(hit.values(), order.id).await;
        let in_line = dying.iter().zip(&mut roles).map(|(one, role)| async move {
            match tokio::time::timeout(DENY_PATIENCE, self.denying.bring_in_line(&one.role)).await {
                Ok(Ok(())) => role.in_force = true,
                Ok(Err(undone)) => match undone.left_out {
                    Some(left_out) if !one.whose.keys().any(|whose| left_out.contains(whose)) => role.in_force = true,
                    _ => role.why_not = Some(format!("{}: {}", one.role, undone.why)),
                },
                Err(_) => {
                    role.why_not = Some(format!("{}: IAM takes long; credvend goes on with it by itself", one.role));
                }
            }
        });
        super::sweeping::all(in_line).await;
        Ok((roles, Instant::now()))
    }

    /// These sessions live, but something that they got is dead in AWS: they are given new credentials at once.
    async fn renew<'s>(&self, sessions: impl Iterator<Item = &'s Session> + Clone, order: impl Into<Option<OrderId>>) {
        for session in sessions.clone() {
            self.issuing.forget(session.id);
        }
        let reason = "other credentials under the same name were revoked; new ones are fetched";
        self.tell(NewsKind::Renew, sessions, reason, order.into(), &BTreeMap::new()).await;
    }

    /// A user's sessions and credentials (the v1 DELETE): on the head's clusters, or everywhere.
    ///
    /// # Errors
    /// As [`Vending::revoke`].
    pub async fn invalidate_user(
        &self,
        by: &str,
        clusters: Option<&[ClusterName]>,
        user: &UserName,
    ) -> Result<RevocationReport, Refusal> {
        self.revoke(Ordered {
            id: OrderId::random(),
            subject: Subject::User(user.clone()),
            clusters: clusters.map(<[ClusterName]>::to_vec),
            by: by.to_owned(),
            why: None,
            wide: false,
            block: false,
        })
        .await
    }

    /// An administrator ends one session. What it was issued lives on until it expires.
    ///
    /// # Errors
    /// An unknown session, a broken store.
    pub async fn close(&self, by: &str, session: SessionId) -> Result<(), Refusal> {
        match self.end_as_told(session, SessionStatus::Invalidated, &format!("closed by {by}")).await? {
            Ended::Now(_) | Ended::Before(_) => Ok(()),
            Ended::Unknown => Err(Refusal::UnknownSession(session.to_string())),
        }
    }
}

/// Who may hold what an order is about: the nodes of what it ended, and of what ended not long before.
fn all_holders(order: &Order, sessions: &[Session], earlier: &[Session], issued: &[Issuance]) -> Holders {
    let mut holders = telling::holders(sessions, issued);
    for (place, until) in telling::holders(earlier.iter().filter(|s| may_run_on(s, order)), issued) {
        let known = holders.entry(place).or_insert(until);
        *known = until.max(*known);
    }
    holders
}

/// Whether processes of an ended session's job may still be there: epilogs may be late.
fn may_run_on(session: &Session, order: &Order) -> bool {
    session.ended.is_some_and(|at| order.at - at < EPILOGS)
}

fn lease_of(order: OrderId) -> String {
    format!("order:{order}")
}

/// What the users of ended jobs read.
fn reason(order: &Order) -> String {
    let why = order.why.as_ref().map(|why| format!(": {}", why.escape_debug())).unwrap_or_default();
    format!("the credentials of {} were revoked by {}{why}", shown(&order.subject), order.by)
}

/// For a rehearsal: whether the policy would have room.
fn too_much(dying: &Dying, living: &[Revocation]) -> Option<String> {
    let mut entries: Vec<Revocation> = living.iter().filter(|e| e.role_arn == dying.role).cloned().collect();
    entries.extend(dying.revocations());
    let mut left_out: Vec<Denied> = policy::compose(&entries, policy::MAX_CHARS).left_out;
    // What jobs left at their ends takes no room from an order.
    left_out.retain(|whose| entries.iter().any(|entry| entry.ordered && entry.whose == *whose));
    (!left_out.is_empty()).then(|| {
        format!(
            "{}: {} revoked names would not fit the role's inline policies ({} characters); revoke with --wide",
            dying.role,
            left_out.len(),
            policy::MAX_CHARS
        )
    })
}

fn joined(result: Option<Result<Result<(), StoreError>, tokio::task::JoinError>>) -> Result<(), StoreError> {
    match result {
        Some(Ok(result)) => result,
        Some(Err(e)) => Err(StoreError::Broken(e.to_string())),
        None => Ok(()),
    }
}
