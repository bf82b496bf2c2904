#include "api/staging.h"

#include "core/dtypes.h"

namespace fastnorm {

namespace {

// FNV-1a over the bytes of numbers.
class Hash {
  public:
    void add(std::uint64_t number) {
        for (int shift = 0; shift < 64; shift += 8) {
            value_ = (value_ ^ (number >> shift & 0xff)) * 0x100000001b3u;
        }
    }
    void add(std::int64_t number) { add(static_cast<std::uint64_t>(number)); }
    void add(int number) { add(std::int64_t{number}); }
    void add(double number) { add(bit_copy<std::uint64_t>(number + 0.0)); }  // -0 as 0

    std::uint64_t value() const { return value_; }

  private:
    std::uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace

Staging::Staging(const Backend& backend, const TensorView& x, int channel_axis,
                 Explanation* explanation)
    : backend_(backend),
      explanation_(explanation),
      order_(order_of_dims(x, channel_axis)),
      view_(batch_norm_view(x, order_)),
      dense_(dense_like(x, order_)) {}

std::int64_t Staging::mask_bytes() const {
    return signature_bytes + backend_.mask_bytes(view_, dense_.dtype);
}

std::uint64_t Staging::mask_signature(const Activation& activation) const {
    Hash hash;
    hash.add(backend_.mask_salt(dense_.dtype));
    hash.add(dense_.ndim);
    for (int i = 0; i < dense_.ndim; ++i) hash.add(dense_.shape[i]);
    hash.add(order_.axis[order_.channel]);
    for (int i = 0; i < order_.count; ++i) hash.add(order_.axis[i]);
    hash.add(static_cast<int>(activation.kind));
    hash.add(activation.alpha);
    hash.add(activation.beta);
    return hash.value();
}

TensorView& Staging::stand_in(const char* name, const TensorView& tensor,
                              const TensorView* result) {
    stand_ins_.emplace_back(new StandIn{dense_, nullptr, result});
    StandIn& made = *stand_ins_.back();
    if (explanation_ != nullptr) {
        explanation_->copied.emplace_back(name);
        made.view.data = tensor.data;
    } else {
        const auto bytes = static_cast<std::size_t>(view_.elements() * size_of(tensor.dtype));
        made.memory = backend_.allocate(bytes);
        made.view.data = made.memory.get();
    }
    return made.view;
}

const TensorView& Staging::input(const char* name, const TensorView& tensor) {
    if (!tensor.given() || walkable(tensor, view_, order_)) return tensor;
    const TensorView& dense = stand_in(name, tensor, nullptr);
    if (explanation_ == nullptr) backend_.copy(dense, tensor, order_);
    return dense;
}

const TensorView& Staging::output(const char* name, const TensorView& tensor) {
    if (!tensor.given() || walkable(tensor, view_, order_)) return tensor;
    return stand_in(name, tensor, &tensor);
}

View Staging::bind(std::initializer_list<std::pair<const TensorView*, Operand*>> operands) const {
    View view = view_;
    const TensorView* tensors[8];
    Operand* targets[8];
    int count = 0;
    for (const auto& [tensor, operand] : operands) {
        tensors[count] = tensor;
        targets[count++] = operand;
    }
    bind_operands(view, order_, tensors, targets, count);
    return view;
}

void Staging::commit() const {
    if (explanation_ != nullptr) return;
    for (const auto& made : stand_ins_) {
        if (made->result != nullptr) backend_.copy(*made->result, made->view, order_);
    }
}

}  // namespace fastnorm
