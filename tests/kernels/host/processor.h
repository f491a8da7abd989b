// What texts for processors use beyond the dialect, for the host: stands behind CUDA_HEADER.
#undef VLOAD4
#undef VLOAD8
#undef VLOAD16
#undef VSTORE4
#undef VSTORE8
#undef VSTORE16
// OpenCL's vloadn and vstoren take the address of any float.
#define X_LOOSE(W) \
    struct x_loose##W { f32x##W v; } __attribute__((packed)); \
    static inline f32x##W x_load##W(const float *p) { \
        f32x##W v; \
        memcpy(&v, (const x_loose##W *)p, sizeof v); \
        return v; \
    } \
    static inline void x_store##W(float *p, f32x##W v) { memcpy((x_loose##W *)p, &v, sizeof v); } \
    static inline f32x##W sqrt(f32x##W v) { \
        float lanes[W]; \
        memcpy(lanes, &v, sizeof v); \
        for (float &lane : lanes) lane = sqrtf(lane); \
        memcpy(&v, lanes, sizeof v); \
        return v; \
    }
X_LOOSE(4)
X_LOOSE(8)
X_LOOSE(16)
#define VLOAD4(p) x_load4(p)
#define VLOAD8(p) x_load8(p)
#define VLOAD16(p) x_load16(p)
#define VSTORE4(p, v) x_store4((p), (v))
#define VSTORE8(p, v) x_store8((p), (v))
#define VSTORE16(p, v) x_store16((p), (v))
