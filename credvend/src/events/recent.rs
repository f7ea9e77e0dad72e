//! The newest news of a cluster, for nodes that missed some of it and for those that answer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Line;

/// A node that missed more than this begins anew.
const MAX_LINES: usize = 1024;

/// Bytes: a piece of news may ask ten thousand nodes for an answer.
const MAX_WEIGHT: usize = 32 << 20;

/// Lines whose numbers follow each other, up to the newest that is told.
#[derive(Debug, Default)]
pub(super) struct Recent {
    lines: VecDeque<Arc<Line>>,
    weight: usize,
}

impl Recent {
    /// The next one. After a gap what was before it is of no use.
    pub(super) fn push(&mut self, line: Arc<Line>) {
        if self.lines.back().is_some_and(|last| last.seq + 1 != line.seq) {
            *self = Recent::default();
        }
        self.weight += line.weight();
        self.lines.push_back(line);
        while self.lines.len() > MAX_LINES || self.weight > MAX_WEIGHT {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.weight -= oldest.weight();
        }
    }

    /// The line of this number.
    pub(super) fn get(&self, seq: u64) -> Option<Arc<Line>> {
        let index = seq.checked_sub(self.lines.front()?.seq)?;
        self.lines.get(usize::try_from(index).ok()?).cloned()
    }

    /// All lines after this number up to the newest, which is `newest`; `None` if they are not all here.
    pub(super) fn after(&self, after: u64, newest: u64) -> Option<Vec<Arc<Line>>> {
        if after == newest {
            return Some(vec![]);
        }
        let (first, last) = (self.lines.front()?.seq, self.lines.back()?.seq);
        let skipped = (after + 1).checked_sub(first).filter(|_| last == newest)?;
        Some(self.lines.iter().skip(usize::try_from(skipped).ok()?).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn line(seq: u64, bytes: usize) -> Arc<Line> {
        Arc::new(Line {
            seq,
            order: None,
            asked: HashSet::new(),
            plain: vec![0; bytes].into(),
            to_answer: vec![].into(),
            completed: vec![],
        })
    }

    fn numbers(lines: Option<Vec<Arc<Line>>>) -> Option<Vec<u64>> {
        lines.map(|lines| lines.iter().map(|line| line.seq).collect())
    }

    #[test]
    fn what_was_missed_is_told_whole_or_not_at_all() {
        let mut recent = Recent::default();
        assert_eq!(numbers(recent.after(7, 7)), Some(vec![]));
        assert_eq!(numbers(recent.after(6, 7)), None);
        (5..=8).for_each(|seq| recent.push(line(seq, 1)));
        assert_eq!(numbers(recent.after(4, 8)), Some(vec![5, 6, 7, 8]));
        assert_eq!(numbers(recent.after(7, 8)), Some(vec![8]));
        assert_eq!(numbers(recent.after(3, 8)), None);
        assert_eq!(numbers(recent.after(7, 9)), None, "the newest is not here");
        assert_eq!(recent.get(5).map(|line| line.seq), Some(5));
        assert!(recent.get(4).is_none() && recent.get(9).is_none());
        // Somebody pruned what lies between.
        recent.push(line(11, 1));
        assert_eq!(numbers(recent.after(10, 11)), Some(vec![11]));
        assert_eq!(numbers(recent.after(7, 11)), None);
    }

    #[test]
    fn it_is_bounded_by_number_and_by_weight() {
        let mut recent = Recent::default();
        (1..=2_000).for_each(|seq| recent.push(line(seq, 1)));
        assert_eq!((recent.lines.len(), recent.weight), (MAX_LINES, MAX_LINES));
        (2_001..=2_064).for_each(|seq| recent.push(line(seq, MAX_WEIGHT / 8)));
        assert_eq!(numbers(recent.after(2_056, 2_064)).map(|lines| lines.len()), Some(8));
        assert_eq!(recent.lines.len(), 8);
        recent.push(line(2_065, MAX_WEIGHT + 1));
        assert_eq!((recent.lines.len(), recent.weight), (0, 0), "what has no room is not kept");
    }
}
