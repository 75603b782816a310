// Tables that put kept values where the bits of 8 columns say; for byte shuffles, which make 0 of an index above 127.
#pragma once
#include <cstdint>

namespace ressa {

struct Expand {
  alignas(64) uint8_t to_bytes[256][8]{};    // of bytes: index of the kept value of each column
  alignas(64) uint8_t to_floats[256][32]{};  // of bfloat16: to the upper halves of 8 floats
  constexpr Expand() {
    for (int mask = 0; mask < 256; mask++)
      for (int col = 0, kept = 0; col < 8; col++) {
        const bool here = mask >> col & 1;
        to_bytes[mask][col] = here ? (uint8_t)kept : 0x80;
        to_floats[mask][4 * col] = to_floats[mask][4 * col + 1] = 0x80;
        to_floats[mask][4 * col + 2] = here ? (uint8_t)(2 * kept) : 0x80;
        to_floats[mask][4 * col + 3] = here ? (uint8_t)(2 * kept + 1) : 0x80;
        kept += here;
      }
  }
};
inline constexpr Expand EXPAND;

// Of 16 columns with at most 8 kept, the column of each of 8 slots is low[bits of the first 8] | high[bits of the others]:
// the first fill slots from 0 on, the others from 7 down, and slots between them are free (column 0).
struct Halves {
  alignas(64) uint8_t low[256][8]{}, high[256][8]{};
  constexpr Halves() {
    for (int mask = 0; mask < 256; mask++)
      for (int col = 0, kept = 0; col < 8; col++) {
        if (!(mask >> col & 1)) continue;
        low[mask][kept] = (uint8_t)col;
        high[mask][7 - kept++] = (uint8_t)(8 + col);
      }
  }
};
inline constexpr Halves HALVES;

}  // namespace ressa
