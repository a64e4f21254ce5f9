//! Cutting a matrix into tiles that are worked on side by side: the places of each, row by row.

use std::ops::Range;

use crate::dot::OUTPUTS;

/// Some rows and columns of a matrix, and where they lie.
pub(crate) struct Tile<'o, T> {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    pub places: Vec<&'o mut [T]>,
}

/// The tiles of a matrix with `cols` columns, each of `tile_rows` and `tile_cols` or less.
pub(crate) fn cut<T>(
    matrix: &mut [T],
    cols: usize,
    tile_rows: usize,
    tile_cols: usize,
) -> Vec<Tile<'_, T>> {
    let mut tiles = vec![];
    for (part, matrix) in matrix.chunks_mut(tile_rows * cols).enumerate() {
        let first = part * tile_rows;
        let rows = first..first + matrix.len() / cols;
        let starts = (0..cols).step_by(tile_cols);
        let mut of_rows: Vec<Tile<'_, T>> = starts
            .map(|start| {
                let columns = start..cols.min(start + tile_cols);
                Tile { rows: rows.clone(), columns, places: Vec::with_capacity(rows.len()) }
            })
            .collect();
        for row in matrix.chunks_mut(cols) {
            let parts = row.chunks_mut(tile_cols);
            of_rows.iter_mut().zip(parts).for_each(|(tile, part)| tile.places.push(part));
        }
        tiles.append(&mut of_rows);
    }
    tiles
}

/// The first numbers of a block; zeros for outputs that there are not.
#[inline(always)]
pub(crate) fn block_of<T: Copy + Default>(values: &[T]) -> [T; OUTPUTS] {
    if let Some(whole) = values.first_chunk() {
        return *whole;
    }
    let mut block = [T::default(); OUTPUTS];
    block[..values.len()].copy_from_slice(values);
    block
}

/// Writes a block, as far as there is room.
#[inline(always)]
pub(crate) fn put_block<T: Copy>(out: &mut [T], block: &[T; OUTPUTS]) {
    if let Some(whole) = out.first_chunk_mut() {
        *whole = *block;
    } else {
        out.copy_from_slice(&block[..out.len()]);
    }
}
