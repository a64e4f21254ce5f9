//! Cutting a 2-D array into blocks, parts and groups. Arithmetic on shapes alone: no threads, no
//! elements.
//!
//! Blocks come in memory order and do not overlap. A block is whole rows, or a piece of one row, so
//! in every array it is one contiguous piece; a piece of a row starts on a byte of its packed codes.

use std::ops::Range;

/// Elements in a part of a block, about: its float32 input (32 KB) stays in the caches of the core
/// between the pass that finds the range and the pass that encodes.
const PART: usize = 1 << 13;

/// Groups up to this size are never cut, so that one pass over memory can do both.
const LARGE_GROUP: usize = 1 << 16;

/// Bytes that `cols` codes of a row take.
#[inline(always)]
#[must_use]
pub fn packed_len(cols: usize, bits: u32) -> usize {
    // Not cols * bits / 8: that overflows before memory runs out.
    cols / 8 * bits as usize + (cols % 8 * bits as usize).div_ceil(8)
}

/// A C-contiguous 2-D array whose rows are cut into groups of `group_size`; the last group of a row
/// may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Number of rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Elements in a group; at least 1.
    pub group_size: usize,
}

/// A part of a grid: whole rows, or a piece of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number of (pieces of) rows.
    pub rows: usize,
    /// The columns of each.
    pub cols: Range<usize>,
    /// Flat indices of the groups it touches.
    pub groups: Range<usize>,
    /// The same groups, counted from the start of a row.
    pub row_groups: Range<usize>,
}

/// The elements of one group within a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the group in its row.
    pub group: usize,
    /// Where its elements are among those asked for.
    pub elements: Range<usize>,
}

impl Grid {
    /// One row that is one group.
    pub(crate) fn of_row(cols: usize) -> Self {
        Self { rows: 1, cols, group_size: cols }
    }

    /// Number of groups in a row.
    #[must_use]
    pub fn groups_per_row(&self) -> usize {
        self.cols.div_ceil(self.group_size)
    }

    /// Number of groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.rows * self.groups_per_row()
    }

    /// Flat indices of the elements of a group.
    pub(crate) fn elements(&self, group: usize) -> Range<usize> {
        let (row, group) = (group / self.groups_per_row(), group % self.groups_per_row());
        let start = group * self.group_size;
        let end = self.cols.min(start.saturating_add(self.group_size));
        row * self.cols + start..row * self.cols + end
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every group lies within one block.
    pub(crate) fn keeps_groups_whole(&self) -> bool {
        self.group_size.min(self.cols) <= LARGE_GROUP
    }

    /// Columns of a block of about `size` elements where a row is larger. A piece of a row starts on
    /// a byte however many bits a code has.
    fn block_cols(&self, size: usize) -> usize {
        let step = if self.keeps_groups_whole() {
            // The least common multiple with 8.
            let group_size = self.group_size.min(self.cols);
            group_size << (3 - group_size.trailing_zeros().min(3))
        } else {
            8
        };
        step.saturating_mul((size / step).max(1)).min(self.cols)
    }

    /// Blocks of about `size` elements, in memory order.
    pub(crate) fn cut(self, size: usize) -> impl ExactSizeIterator<Item = Block> + Send {
        let whole_rows = (size / self.cols.max(1)).max(1);
        let cols = if whole_rows > 1 { self.cols } else { self.block_cols(size) };
        let rows = if cols == self.cols { whole_rows } else { 1 };
        let (down, across) = (self.rows.div_ceil(rows), self.cols.div_ceil(cols.max(1)));
        let per_row = self.groups_per_row();
        let block = move |index: usize| {
            let (row, col) = (index / across * rows, index % across * cols);
            let block_rows = rows.min(self.rows - row);
            let last = (col + cols).min(self.cols);
            let row_groups = col / self.group_size..last.div_ceil(self.group_size);
            let last_row = row + block_rows - 1;
            let groups = row * per_row + row_groups.start..last_row * per_row + row_groups.end;
            Block { rows: block_rows, cols: col..last, groups, row_groups }
        };
        (0..down * across).map(block)
    }

    /// The parts of a block that has been made a grid of its own, in memory order.
    pub(crate) fn parts(self) -> impl Iterator<Item = Block> {
        self.cut(PART)
    }
}

/// Walks along a row from group to group.
pub(crate) struct Groups {
    group_size: usize,
    /// Index in its row of the group it is in.
    group: usize,
    /// Elements that are left of it.
    left: usize,
}

impl Groups {
    /// The groups of the next `len` elements of the row.
    #[inline(always)]
    pub(crate) fn segments(&mut self, len: usize) -> impl Iterator<Item = Segment> {
        let mut start = 0;
        std::iter::from_fn(move || {
            if start >= len {
                return None;
            }
            if self.left == 0 {
                self.group += 1;
                self.left = self.group_size;
            }
            let end = len.min(start + self.left);
            let segment = Segment { group: self.group, elements: start..end };
            self.left -= end - start;
            start = end;
            Some(segment)
        })
    }
}

impl Block {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows * self.cols.len()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flat index of a group, `row` being counted in the block and `group` in the row.
    pub(crate) fn group_of(&self, row: usize, group: usize) -> usize {
        self.groups.start + self.index_of(row, group)
    }

    /// Index of a group, counted from the first of the block.
    #[inline(always)]
    pub(crate) fn index_of(&self, row: usize, group: usize) -> usize {
        row * self.row_groups.len() + group - self.row_groups.start
    }

    /// The block as a grid of its own; it must not cut a group.
    pub(crate) fn grid(&self, whole: Grid) -> Grid {
        Grid { rows: self.rows, cols: self.cols.len(), group_size: whole.group_size }
    }

    /// The groups of a row, from the block's first column on.
    #[inline(always)]
    pub(crate) fn row(&self, grid: Grid) -> Groups {
        let group = self.row_groups.start;
        // Not (group + 1) * group_size, which overflows where a group is larger than a row.
        let left = grid.group_size - (self.cols.start - group * grid.group_size);
        Groups { group_size: grid.group_size, group, left }
    }

    /// Bytes of the packed codes, where every piece of a row starts on a byte.
    #[must_use]
    pub fn packed_len(&self, bits: u32) -> usize {
        self.rows * packed_len(self.cols.len(), bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_everything_once_and_in_order() {
        for (rows, cols, group_size) in [
            (3, 7, 2),
            (1, 300_000, 100),
            (500, 1000, 1),
            (2, 200_001, 70_000),
            (9, 65_537, 65_536),
        ] {
            let grid = Grid { rows, cols, group_size };
            let (mut elements, mut bytes) = (0, 0);
            for block in grid.cut(1 << 16) {
                let (row, col) = (elements / cols, elements % cols);
                assert_eq!(block.cols.start, col);
                assert_eq!(bytes, row * packed_len(cols, 3) + col / 8 * 3);
                assert_eq!(block.groups.start, row * grid.groups_per_row() + col / group_size);
                assert!(!grid.keeps_groups_whole() || col % group_size == 0);
                elements += block.len();
                bytes += block.packed_len(3);
            }
            assert_eq!(elements, grid.len());
        }
    }
}
