//! What a run says: past the limit its head and its tail are kept, and what was between is counted. Memory never exceeds the limit.
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::model::job::Kept;

/// Written by whoever reads the run's pipe, read by whoever asks meanwhile.
#[derive(Clone)]
pub struct SharedCapture(Arc<Mutex<Capture>>);
impl SharedCapture {
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Mutex::new(Capture::new(limit))))
    }
    pub fn lock(&self) -> MutexGuard<'_, Capture> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Capture {
    most_head: usize,
    most_tail: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// Bytes written, kept or not.
    total: u64,
}
impl Capture {
    /// `limit`: bytes that are kept at most.
    pub fn new(limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            most_head: limit.div_ceil(2),
            most_tail: limit / 2,
            head: vec![],
            tail: VecDeque::new(),
            total: 0,
        }
    }
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.most_head - self.head.len()));
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.most_tail)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.most_tail);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }
    pub fn total(&self) -> u64 {
        self.total
    }
    pub fn kept(&self) -> Kept {
        Kept {
            head: self.head.clone(),
            tail: self.tail.iter().copied().collect(),
            total: self.total,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn head_tail_and_the_gap_between(limit in 0u64..40, pieces in prop::collection::vec(prop::collection::vec(0u8..=255, 0..30), 0..12)) {
            let mut capture = Capture::new(limit);
            let mut all = vec![];
            for piece in &pieces {
                capture.push(piece);
                all.extend_from_slice(piece);
            }
            let kept = capture.kept();
            prop_assert_eq!(kept.total, all.len() as u64);
            prop_assert!((kept.head.len() + kept.tail.len()) as u64 <= limit);
            prop_assert_eq!(kept.gap(), (all.len() as u64).saturating_sub(limit));
            prop_assert!(all.starts_with(&kept.head) && all.ends_with(&kept.tail));
            // Whoever asks on and on hears all of it, and how much is missing, once.
            let (mut at, mut heard, mut missing) = (0, vec![], 0);
            loop {
                let (begin, bytes, gap) = kept.from(at);
                prop_assert_eq!(begin, at + gap);
                missing += gap;
                heard.extend_from_slice(bytes);
                if bytes.is_empty() { break }
                at = begin + bytes.len() as u64;
            }
            prop_assert_eq!(heard, [kept.head.clone(), kept.tail.clone()].concat());
            prop_assert!(missing == kept.gap() || kept.tail.is_empty());
        }
    }
}
