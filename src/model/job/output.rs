//! What a run has said, as far as it is kept.
/// What is kept of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
    pub total: u64,
}
impl Kept {
    /// Bytes between head and tail.
    pub fn gap(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }
    /// The end of it.
    pub fn last(&self, most: usize) -> &[u8] {
        let end = if self.tail.is_empty() { &self.head } else { &self.tail };
        &end[end.len().saturating_sub(most)..]
    }
    /// From that byte on, of all that was written: where it begins, what is there, and how many that were asked for are not.
    /// The gap is passed over in one answer: head first, tail with the next question.
    pub fn from(&self, from: u64) -> (u64, &[u8], u64) {
        let head = self.head.len() as u64;
        let tail = self.total - self.tail.len() as u64;
        if from < head {
            return (from, &self.head[from as usize..], 0);
        }
        let begin = from.clamp(tail, self.total);
        (begin, &self.tail[(begin - tail) as usize..], begin.saturating_sub(from))
    }
}
