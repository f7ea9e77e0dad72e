//! Reads several partitions as one listing, downwards, by their sort keys.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::db::Db;
use super::item::{Item, Row, SK};
use crate::store::StoreError;

/// Partitions, in groups: what is in an earlier group comes before everything in a later one.
pub(super) struct Walk {
    db: Arc<Db>,
    table: String,
    groups: VecDeque<Vec<String>>,
    sources: Vec<Source>,
    /// Lowest sort key, included; where to begin, excluded.
    low: String,
    from: String,
    chunk: Option<i32>,
}

struct Source {
    pk: String,
    ready: VecDeque<Item>,
    from: String,
    done: bool,
}

impl Walk {
    /// `chunk`: how many items one question asks for, at least two, since one of them may be where the last answer ended;
    /// none: as many as DynamoDB gives at once.
    pub(super) fn new(
        db: &Arc<Db>,
        table: &str,
        groups: impl IntoIterator<Item = Vec<String>>,
        (low, from): (&str, &str),
        chunk: Option<i32>,
    ) -> Self {
        Walk {
            db: db.clone(),
            table: table.to_owned(),
            groups: groups.into_iter().collect(),
            sources: vec![],
            low: low.to_owned(),
            from: from.to_owned(),
            chunk,
        }
    }

    /// The next item downwards.
    pub(super) async fn next(&mut self) -> Result<Option<Item>, StoreError> {
        loop {
            self.fill().await?;
            let place = |source: &Source| source.ready.front().and_then(|i| Row(i).text(SK).ok()).map(str::to_owned);
            let best = self.sources.iter().enumerate().filter_map(|(i, s)| Some((place(s)?, i))).max();
            if let Some((_, best)) = best {
                return Ok(self.sources[best].ready.pop_front());
            }
            let Some(group) = self.groups.pop_front() else { return Ok(None) };
            let source = |pk| Source { pk, ready: VecDeque::new(), from: self.from.clone(), done: false };
            self.sources = group.into_iter().map(source).collect();
        }
    }

    /// Asks for more of every partition of which nothing is at hand, all at the same time.
    async fn fill(&mut self) -> Result<(), StoreError> {
        let mut questions = JoinSet::new();
        for (i, source) in self.sources.iter().enumerate().filter(|(_, s)| s.ready.is_empty() && !s.done) {
            let (db, table, pk) = (self.db.clone(), self.table.clone(), source.pk.clone());
            let (low, from, chunk) = (self.low.clone(), source.from.clone(), self.chunk);
            questions.spawn(async move { (i, db.query(&table, &pk, (&low, &from), false, chunk).await) });
        }
        while let Some(answer) = questions.join_next().await {
            let (i, answer) =
                answer.map_err(|e| StoreError::Unavailable(format!("a question to DynamoDB ended abnormally: {e}")))?;
            let (items, more) = answer?;
            let source = &mut self.sources[i];
            source.done = !more;
            if let Some(last) = items.last() {
                let last = Row(last).text(SK)?.to_owned();
                // `from` is excluded, and DynamoDB's BETWEEN includes it.
                let from = std::mem::replace(&mut source.from, last);
                source.ready.extend(items.into_iter().filter(|i| Row(i).text(SK).is_ok_and(|sk| sk != from)));
            }
        }
        // A source whose answer held nothing new is asked again.
        if self.sources.iter().any(|s| s.ready.is_empty() && !s.done) { Box::pin(self.fill()).await } else { Ok(()) }
    }
}
